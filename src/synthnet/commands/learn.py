"""`synthnet learn`: the policy, its card and its report. Imports happen inside, so that every command starts fast."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synthnet.policy import Policy
    from synthnet.tasks import Task

REPORT_SEEDS, REPORT_STEPS = 64, (1, 2, 4)
FEW_SEEDS, LARGE = 32, 20_000  # seeds of nets of so many weights, whose twins take long


def run(options) -> None:
    """The command with its parsed flags."""
    from synthnet.config import parse
    from synthnet.console import as_json
    from synthnet.errors import InputError
    from synthnet.tasks import names_itself, task_names

    given, name = parse(options.settings), options.task
    if not names_itself(name) and name not in task_names():
        name = problem_of(options, given)
    elif options.module or options.target:
        raise InputError(f"--module and --target are of a file or folder of data, and {name} is a task")
    report = learn_task(name, options.minutes, given, options.out, options.rewards_only)
    if options.json:
        print(as_json(report))
    else:
        from synthnet.commands.describe import print_policy

        print_policy(report)
        print(report["policy"])


def learn(task: "Task | str", minutes: float = 15, seed: int = 0, **settings: Any) -> "Policy":
    """Learn a policy for a task (a `Task`, FILE.py:NAME, or a built-in one's name) from nothing, in so many minutes at most.

    Writes a run directory, runs/learn-NAME-SEED or `run_dir`, with policy, card and report. `settings`: those of training
    commands by their full name, as in **{"distil.nets": 16}. Raises: InputError for a bad task or setting.
    """
    from synthnet.policy import read_policy
    from synthnet.tasks import Task, name_of

    name = name_of(task) if isinstance(task, Task) else task
    return read_policy(learn_task(name, minutes, {**settings, "seed": seed})["policy"])


def learn_task(name: str, minutes: float, given: dict, out: str | Path | None = None, rewards_only: bool = False) -> dict:
    """Learn a task, judge the policy on its test split beside its controls, and write policy, card and report.

    Raises: InputError for bad settings, or where another run's policy would be replaced.
    """
    import torch

    from synthnet.audit.evaluation import evaluate_policy
    from synthnet.console import as_json
    from synthnet.errors import InputError
    from synthnet.files import write_atomic
    from synthnet.lab.learn import learn, prepare
    from synthnet.policy import read_policy

    if out is not None and not Path(out).parent.is_dir():
        raise InputError(f"-o {out}: the folder {Path(out).parent} does not exist; make it first")
    task, setup = prepare(name, given)
    if out is not None and Path(out).exists() and not _made_by(setup.folder, out):
        raise InputError(f"-o {out} exists, and this run did not make it: name another file, or delete it first")
    path, book = learn(task, setup, minutes, rewards_only)
    policy = read_policy(path)
    steps = sorted({*REPORT_STEPS, policy.record.get("best_k", 1)} & set(range(1, policy.config.k_max + 1)))
    seeds = FEW_SEEDS if task.network.spec.n_weights >= LARGE else REPORT_SEEDS
    if task.data is not None:
        print(f"learn: report: {seeds} unseen seeds beside twins and strong twins, which are grown", file=sys.stderr)
    report = evaluate_policy(policy, task, seeds, steps, strong=task.data is not None)
    folder = setup.folder
    target = Path(out) if out is not None else folder / "policy.safetensors"
    policy.save(target, torch.float16)
    report |= {"policy": str(target), "decisions": book, "seconds": round(book[-1]["elapsed_s"], 1), "cost": cost(task, book)}
    report |= {"test_read": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "parameters": policy.n_parameters}
    report["best_k"] = policy.record.get("best_k", 1)
    write_atomic(folder / "report.json", as_json(report, 1) + "\n")
    write_atomic(target.with_suffix(".md"), card(name, policy, report))
    draw(report, folder / "report.png")
    print(f"report: {folder}/report.json; card: {target.with_suffix('.md')}", file=sys.stderr)
    return report


def _made_by(folder: Path, out: str | Path) -> bool:
    """Whether an earlier call of a run wrote that policy."""
    report = folder / "report.json"
    return report.exists() and json.loads(report.read_text()).get("policy") == str(out)


def cost(task, book: list[dict]) -> dict:
    """What a net costs by conventional training, alone and in a population of 64, and after how many the policy has paid: the
    second of two epochs is timed, since the first one pays for plans."""
    import torch

    from synthnet.engine import Training
    from synthnet.tasks import recipe_of, trained

    spent = book[-1]["elapsed_s"]
    if task.data is None:
        return {"seconds_learning": spent, "threads": torch.get_num_threads()}
    recipe, seconds = recipe_of(task), {}
    for n_nets in (1, 64):
        seeds = list(range(n_nets))
        start, spec, epoch = task.draw_start("user", seeds), task.draw_spec("user", seeds), replace(recipe, epochs=1)
        for _ in range(2):
            began = time.monotonic()
            trained(task, start, Training(epoch), spec=spec)
        seconds[n_nets] = recipe.epochs * (time.monotonic() - began) / n_nets
    return {
        "seconds_learning": spent,
        "threads": torch.get_num_threads(),
        "seconds_a_twin_alone": seconds[1],
        "seconds_a_twin_of_64": seconds[64],
        "break_even_alone": round(spent / seconds[1]),
        "break_even_of_64": round(spent / seconds[64]),
    }


def card(name: str, policy, report: dict) -> str:
    from synthnet.console import markdown

    columns, rows = card_rows(report)
    decisions = "\n".join(f"- {entry['what']} ({entry['elapsed_s']:.0f} s): {entry['why']}" for entry in report["decisions"])
    return (
        f"# Policy for {report['task']}\n\nTurns random weights of {', '.join(map(str, policy.archs))} into working ones, "
        f"without data. {policy.n_parameters:,} parameters; best K on val: {policy.record.get('best_k', 1)}. Made by "
        f"`synthnet learn` in {report['seconds']:.0f} s.\n\n"
        f"## Measured: {report['seeds']} unseen seeds, {report['n_images']} test examples\n\n{markdown(columns, rows)}\n\n"
        f"{paid_for(report['cost'])}\n\n"
        f"## Decisions\n\n{decisions}\n"
    )


def card_rows(report: dict) -> tuple[list[str], list[list[str]]]:
    """The card's table: the metric by synth step beside what it is compared with."""
    from synthnet.console import percent

    if "sgd_twins" not in report:
        steps = {"start weights": report["start"], **{f"K = {k}": row["accuracy"] for k, row in report["steps"].items()}}
        shown = [[name, f"{stats['mean']:.4g} ± {stats['sd']:.3g}", f"{stats['min']:.4g}"] for name, stats in steps.items()]
        return ["weights", "reward, mean ± sd", "worst"], shown
    row = lambda title, stats, *more: [  # noqa: E731
        title,
        f"{percent(stats['mean'])} ± {100 * stats['sd']:.2f}",
        percent(stats["min"]),
        *more,
    ]
    rows = [row("start weights", report["start"], "", "", "")]
    for k, step in report["steps"].items():
        ratio = step["identity"]["aligned_distance"]["ratio"]
        shares = [percent(step["share_of_sgd"]), percent(step["share_of_strong"])]
        rows.append(row(f"K = {k}", step["accuracy"], *shares, f"{ratio:.2f}"))
    rows += [row("twins", report["sgd_twins"], "100 %", "", "1"), row("strong twins", report["strong_twins"], "", "100 %", "")]
    compared = ["share of twins", "share of strong twins", "aligned distance / twins'"]
    return ["weights", f"{report['metric']}, mean ± sd", "worst", *compared], rows


def paid_for(paid: dict) -> str:
    if "break_even_alone" not in paid:
        return f"Learned in {paid['seconds_learning']:.0f} s."
    return (
        f"A twin takes {paid['seconds_a_twin_alone']:.2g} s alone, {paid['seconds_a_twin_of_64']:.2g} s among 64: the policy "
        f"has paid for itself after {paid['break_even_alone']:,} or {paid['break_even_of_64']:,} nets."
    )


def draw(report: dict, path: Path) -> None:
    """Metric by synth step beside twins and strong twins; nothing where matplotlib is not installed."""
    from synthnet.console import figure_library
    from synthnet.errors import InputError

    try:
        _, plt = figure_library()
    except InputError:
        return
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    steps = {0: report["start"], **{int(k): row["accuracy"] for k, row in report["steps"].items()}}
    axes.errorbar(list(steps), [s["mean"] for s in steps.values()], [s["sd"] for s in steps.values()], marker="o", capsize=3)
    references = (("sgd_twins", "twins", ":"), ("strong_twins", "strong twins", "--"))
    for key, title, line in (each for each in references if each[0] in report):
        axes.axhline(report[key]["mean"], color="tab:gray", ls=line, lw=1, label=title)
    if report["metric"] == "r2":  # start weights lie far below
        axes.set_ylim(bottom=min(0.0, *(steps[k]["mean"] for k in steps if k)) - 0.1)
    axes.set_xticks(list(steps))
    title = f"{report['task']}: {report['seeds']} unseen seeds, {report['n_images']} test examples"
    axes.set(xlabel="synth steps (0: start weights)", ylabel=report["metric"], title=title)
    if "sgd_twins" in report:
        axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def problem_of(options, given: dict) -> str:
    """A problem file for data that were named on the command line, written into the run directory; its FILE.py:NAME."""
    from synthnet.files import write_atomic
    from synthnet.tasks.readers import problem_text

    source = Path(options.task)
    name = "".join(char if char.isalnum() else "_" for char in source.stem).strip("_").lower() or "task"
    name = f"task_{name}" if not name.isidentifier() else name
    text = problem_text(source, name, options.module, options.target)
    folder = Path(given.get("run_dir") or f"runs/learn-{name}-{given.get('seed', 0)}")
    folder.mkdir(parents=True, exist_ok=True)
    given["run_dir"] = str(folder)
    write_atomic(folder / "problem.py", text)
    return f"{folder / 'problem.py'}:{name}"
