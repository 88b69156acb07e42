"""What each command of the lab does with its parsed flags: live runs, sweeps, the page. Imports happen inside."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path

from synthnet.errors import InputError

ANSWER_S = 5.0  # how long a request waits for the run's answer


def patch(options) -> None:
    from synthnet.config import parse
    from synthnet.lab.requests import request_patch

    folder = Path(options.run_dir)
    _report(folder, request_patch(folder, parse(options.settings), options.over), options.wait)


def rollback(options) -> None:
    from synthnet.lab.requests import request_rollback

    folder = Path(options.run_dir)
    _report(folder, request_rollback(folder, options.to, options.weights, options.over), options.wait)


def _report(folder: Path, number: int, patience_s: float) -> None:
    """Say what the run answered. Raises: InputError where it refused."""
    from synthnet.lab.requests import answer

    entry = answer(folder, number, patience_s)
    if entry is None:
        print(f"request {number} waits in {folder}: the run takes it before its next update", file=sys.stderr)
        return
    if entry["kind"] == "refused":
        raise InputError(f"the run refused request {number} at update {entry['update']}: {entry['reason']}")
    print(f"request {number} applied before update {entry['update'] + 1}: patch version {entry['version']}")


def fork(options) -> None:
    from synthnet.config import compose, parse
    from synthnet.lab import fork as made
    from synthnet.stages import as_text

    folder = Path(options.run_dir)
    if options.replay:
        if options.settings:
            raise InputError("--replay repeats a run as it was: leave the settings out, or leave --replay out")
        stage, given = made.replay(folder, options.out)
    else:
        stage, given = made.fork(folder, parse(options.settings), options.out)
    command = ["synthnet", stage, *as_text(given)]
    print(shlex.join(command), file=sys.stderr)
    print(made.begin(stage, compose(given), given, command))


def runs(options) -> None:
    from synthnet.lab import table as runs_table

    action = {
        "list": runs_table.print_runs,
        "show": runs_table.show,
        "stop": runs_table.stop,
        "resume": runs_table.resume,
        "compare": runs_table.compare,
        "prune": runs_table.prune,
    }
    action[options.action](options)


def serve(options) -> None:
    from synthnet.lab.serve.server import serve

    serve(Path(options.runs), options.port)


def train(command: str, settings: list[str]) -> None:
    """`synthnet zoo|corrupt|pairs|distil|grpo|critic|run KEY=VALUE…`."""
    from synthnet.lab.fork import run_command

    print(run_command(command, settings))


def sweep(settings: list[str]) -> None:
    """`synthnet sweep KEY=VALUE,VALUE… sweep.KEY=VALUE…`."""
    from synthnet.config import compose
    from synthnet.lab.space import parse_space
    from synthnet.lab.sweep import run_sweep
    from synthnet.lab.sweep_report import draw_sweep, print_sweep
    from synthnet.stages import check_stages, setup_of

    space, fixed = parse_space(settings)
    first = {**fixed, **{name: axis.first for name, axis in space.items()}}
    config = compose(first)
    check_stages(config)
    for name, axis in space.items():  # a slip in one value shows before any trial
        for choice in axis.choices[1:]:
            compose({**first, name: choice})
    setup = setup_of("sweep", config.build_task(), config, fixed, ["synthnet", "sweep", *settings])
    text = setup.text + "".join(f"# swept: {name} {axis}\n" for name, axis in space.items())
    results = run_sweep(replace(setup, text=text), config.sweep, space, fixed, config.stages[-1])
    print_sweep(results)
    try:
        print(f"results in {setup.folder}/results.json, figure {draw_sweep(results, setup.folder / 'sweep.png')}")
    except InputError as error:
        print(f"results in {setup.folder}/results.json; no figure: {error}")
    if results["trials"] and all(trial["state"] == "fail" for trial in results["trials"]):
        raise InputError(f"every trial of the sweep failed; what they said is in {setup.folder}/trial-*/log.txt")


def calibrate(settings: list[str]) -> None:
    """`synthnet calibrate KEY=VALUE…`: measure each sigma, print the table and the settings that follow."""
    import warnings

    from synthnet.config import compose, parse
    from synthnet.console import table
    from synthnet.grpo.calibrate import calibrate, recommended
    from synthnet.stages import as_text, check_schedules, setup_of, start_policy, use_resources

    given = parse(settings)
    config = compose(given)
    use_resources(config)
    check_schedules("grpo", config)
    task, rows, measured = config.build_task(), [], []
    setup = setup_of("calibrate", task, config, given, ["synthnet", "calibrate", *settings])
    for row in calibrate(start_policy(config, task, setup), task, config.grpo, config.reward, config.seed, setup.place):
        measured.append(row)
        dimension = "–" if row.dimension is None else f"{row.dimension:,.0f}"
        numbers = [
            f"{row.reward:.4f}",
            f"{row.drop:.4f}",
            f"{row.spread:.5f}",
            "–" if row.snr is None else f"{row.snr:.1f}",
            f"{row.cosine:.3f}",
            dimension,
        ]
        rows.append([f"{row.sigma:g} {row.uses}".strip(), *numbers, "yes" if row.accepted else ""])
    heads = ["sigma", "reward", "drop", "spread", "signal/noise", "half-batch cosine", "effective dimension", "accepted"]
    table(f"calibration of GRPO on {task.name}", heads, rows)
    if not any(row.accepted for row in measured):
        warnings.warn(
            "no sigma meets both rules (cost, signal to noise); this is the one with the most agreement", stacklevel=2
        )
    found = recommended(measured, config.reward, len(task.members[0].examples(config.reward.split)[1]))
    found |= {"grpo.sigma_by": "role"} if config.grpo.sigma_by == "role" else {}
    print(" ".join(as_text(found)))


def shard(options) -> None:
    """`synthnet shard ZOO NUMBER`, what the workers of a zoo's executor run: one shard of the zoo whose run directory that is.
    What is there already is left alone. Raises: InputError where the folder is none, or has no such shard."""
    from synthnet.config import read_config
    from synthnet.engine.plan import set_memory_budget
    from synthnet.lab.fork import check_code
    from synthnet.train.zoo import check_zoo, member_path, shard_path, train_shard

    folder = Path(options.zoo).resolve()
    config, path = read_config(folder), shard_path(folder, options.number)
    check_code(folder, config, options.code)
    if not path.exists():
        set_memory_budget(config.memory)
        check_zoo(config.zoo)
        task = config.build_task()
        members = [one for one in task.members if len(task.members) == 1 or member_path(task, one, folder.parent) == folder]
        if not members:
            raise InputError(f"{folder} is the zoo of no member of {task.name}; it was moved or renamed")
        train_shard(members[0], config.zoo, options.number, path, config.device)
    print(path)


def import_runs(settings: list[str]) -> None:
    """`synthnet zoo import DIR [task=NAME] [run_dir=PATH]`."""
    from synthnet.config import parse
    from synthnet.train.zoo import import_zoo

    if not settings:
        raise InputError("expected: synthnet zoo import DIR [task=NAME] [run_dir=PATH]")
    folder, given = settings[0], parse(settings[1:])
    if extra := sorted(set(given) - {"task", "run_dir"}):
        raise InputError(f"zoo import takes task=NAME and run_dir=PATH, got {', '.join(extra)}")
    print(import_zoo(folder, given.get("run_dir", f"runs/zoo-{Path(folder).name}-0"), given.get("task")).path)
