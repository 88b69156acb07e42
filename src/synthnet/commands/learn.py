"""`synthnet learn`: the policy, its card and its report. Imports happen inside, so that every command starts fast."""

import sys
import time
from pathlib import Path

REPORT_SEEDS, REPORT_STEPS = 64, (1, 2, 4)


def learn(options) -> None:
    from synthnet.config import parse
    from synthnet.console import as_json
    from synthnet.tasks import is_own, task_names

    given, name = parse(options.settings), options.task
    if not is_own(name) and name not in task_names():
        name = problem_of(options, given)
    report = learn_task(name, options.minutes, given, options.out)
    if options.json:
        print(as_json(report))
    else:
        from synthnet.commands.describe import print_policy

        print_policy(report)
        print(report["policy"])


def learn_task(name: str, minutes: float, given: dict, out: str | Path | None = None) -> dict:
    """Learn a task, judge the policy on its test split beside its controls, and write policy, card and report."""
    import torch

    from synthnet.audit.evaluation import evaluate_policy
    from synthnet.config import compose
    from synthnet.console import as_json
    from synthnet.errors import InputError
    from synthnet.files import write_atomic
    from synthnet.lab.learn import learn
    from synthnet.policy import read_policy

    if out is not None and not Path(out).parent.is_dir():
        raise InputError(f"-o {out}: the folder {Path(out).parent} does not exist; make it first")
    path, book = learn(name, minutes, given)
    policy, task = read_policy(path), compose({**given, "task": name}).build_task()
    steps = sorted({*REPORT_STEPS, policy.record.get("best_k", 1)} & set(range(1, policy.config.k_max + 1)))
    report = evaluate_policy(policy, task, REPORT_SEEDS, steps, strong=True)
    folder = path.parent.parent
    target = Path(out) if out is not None else folder / "policy.safetensors"
    policy.save(target, torch.float16)
    report |= {"policy": str(target), "decisions": book, "seconds": round(book[-1]["elapsed_s"], 1), "cost": cost(task, book)}
    report |= {"test_read": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "parameters": policy.n_parameters}
    write_atomic(folder / "report.json", as_json(report, 1) + "\n")
    write_atomic(target.with_suffix(".md"), card(name, policy, report))
    draw(report, folder / "report.png")
    print(f"report: {folder}/report.json; card: {target.with_suffix('.md')}", file=sys.stderr)
    return report


def cost(task, book: list[dict]) -> dict:
    """What a net costs by conventional training, alone and in a population of 64, and after how many the policy has paid."""
    import torch

    from synthnet.engine import Training, train_population
    from synthnet.tasks import recipe_of

    recipe = recipe_of(task)
    seconds = {}
    for n_nets in (1, 64):
        start, began = task.draw_start("user", list(range(n_nets))), time.monotonic()
        train_population(task.network, start, *task.examples("train"), Training(recipe), [recipe.epochs])
        seconds[n_nets] = (time.monotonic() - began) / n_nets
    spent = book[-1]["elapsed_s"]
    return {
        "seconds_learning": spent,
        "threads": torch.get_num_threads(),
        "seconds_a_twin_alone": seconds[1],
        "seconds_a_twin_of_64": seconds[64],
        "break_even_alone": round(spent / seconds[1]),
        "break_even_of_64": round(spent / seconds[64]),
    }


def card(name: str, policy, report: dict) -> str:
    from synthnet.console import markdown, percent

    shown = lambda stats: f"{percent(stats['mean'])} ± {100 * stats['sd']:.2f}"  # noqa: E731
    row = lambda title, stats, *more: [title, shown(stats), percent(stats["min"]), *more]  # noqa: E731
    rows = [row("start weights", report["start"], "", "", "")]
    for k, step in report["steps"].items():
        ratio = step["identity"]["aligned_distance"]["ratio"]
        shares = [percent(step["share_of_sgd"]), percent(step["share_of_strong"])]
        rows.append(row(f"K = {k}", step["accuracy"], *shares, f"{ratio:.2f}"))
    rows += [row("twins", report["sgd_twins"], "100 %", "", "1"), row("strong twins", report["strong_twins"], "", "100 %", "")]
    columns = [
        "weights",
        f"{report['metric']}, mean ± sd",
        "worst",
        "share of twins",
        "share of strong twins",
        "aligned distance / twins'",
    ]
    paid = report["cost"]
    decisions = "\n".join(f"- {entry['what']} ({entry['elapsed_s']:.0f} s): {entry['why']}" for entry in report["decisions"])
    return (
        f"# Policy for {report['task']}\n\nTurns random weights of {', '.join(map(str, policy.archs))} into working ones, "
        f"without data. {policy.n_parameters:,} parameters; best K on val: {policy.record.get('best_k', 1)}. Made by "
        f"`synthnet learn` in {report['seconds']:.0f} s.\n\n"
        f"## Measured: {report['seeds']} unseen seeds, {report['n_images']} test examples\n\n{markdown(columns, rows)}\n\n"
        f"A twin takes {paid['seconds_a_twin_alone']:.2g} s alone, {paid['seconds_a_twin_of_64']:.2g} s among 64: the policy "
        f"has paid for itself after {paid['break_even_alone']:,} or {paid['break_even_of_64']:,} nets.\n\n"
        f"## Decisions\n\n{decisions}\n"
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
    for key, title, line in (("sgd_twins", "twins", ":"), ("strong_twins", "strong twins", "--")):
        axes.axhline(report[key]["mean"], color="tab:gray", ls=line, lw=1, label=title)
    low = min(steps[k]["mean"] for k in steps if k) if report["metric"] != "accuracy" else None
    axes.set_ylim(bottom=None if low is None else min(low, report["sgd_twins"]["mean"]) - 0.2)
    axes.set_xticks(list(steps))
    title = f"{report['task']}: {report['seeds']} unseen seeds, {report['n_images']} test examples"
    axes.set(xlabel="synth steps (0: start weights)", ylabel=f"test {report['metric']}", title=title)
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
