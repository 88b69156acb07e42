"""What each command of the lab does with its parsed flags: live runs, sweeps, the page. Imports happen inside."""

import sys
from pathlib import Path

from synthnet.errors import InputError

ANSWER_S = 5.0  # how long a request waits for the run's answer


def patch(options) -> None:
    from synthnet.config import GROUPS
    from synthnet.runs.requests import parse_values, request_patch

    folder = Path(options.run_dir)
    number = request_patch(folder, parse_values(options.settings), options.over, GROUPS)
    _report(folder, number, options.wait)


def rollback(options) -> None:
    from synthnet.runs.requests import request_rollback

    folder = Path(options.run_dir)
    _report(folder, request_rollback(folder, options.to, options.weights, options.over), options.wait)


def _report(folder: Path, number: int, patience_s: float) -> None:
    """Say what the run answered. Raises: InputError where it refused."""
    from synthnet.runs.requests import answer

    entry = answer(folder, number, patience_s)
    if entry is None:
        print(f"request {number} waits in {folder}: the run takes it before its next update", file=sys.stderr)
        return
    if entry["kind"] == "refused":
        raise InputError(f"the run refused request {number} at update {entry['update']}: {entry['reason']}")
    print(f"request {number} applied before update {entry['update'] + 1}: patch version {entry['version']}")


def fork(options) -> None:
    from synthnet.runs.fork import fork_settings, replay_settings
    from synthnet.stages import run_command

    folder = Path(options.run_dir)
    if options.replay:
        if options.settings:
            raise InputError("--replay repeats a run as it was: leave the settings out, or leave --replay out")
        stage, settings = replay_settings(folder, options.out)
    else:
        stage, settings = fork_settings(folder, options.settings, options.out)
    print(f"synthnet {stage} {' '.join(settings)}", file=sys.stderr)
    print(run_command(stage, settings))


def runs(options) -> None:
    from synthnet.runs import table as runs_table

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
    from synthnet.runs.serve.server import serve

    serve(Path(options.runs), options.port)


def run(settings: list[str]) -> None:
    """`synthnet run KEY=VALUE…`: the stages of a configuration, one after the other."""
    from synthnet.stages import run_stages

    print(run_stages(settings))


def sweep(settings: list[str]) -> None:
    """`synthnet sweep KEY=VALUE,VALUE… sweep.KEY=VALUE…`."""
    from synthnet.config import compose
    from synthnet.runs.sweep import parse_space, run_sweep
    from synthnet.runs.sweep_report import draw_sweep, print_sweep
    from synthnet.stages import check_stages, started

    space, fixed = parse_space(settings)
    first = [f"{name}={axis.first}" for name, axis in space.items()]
    config, text = compose([*fixed, *first])
    folder = Path(config.run_dir or f"runs/sweep-{config.build_task().name}-{config.seed}")
    last = check_stages(config)[-1]
    text += "".join(f"# swept: {name} {axis}\n" for name, axis in space.items())
    with started(["synthnet", "sweep", *settings]):
        results = run_sweep(folder, text, config.sweep, settings, last)
    print_sweep(results)
    try:
        print(f"results in {folder}/results.json, figure {draw_sweep(results, folder / 'sweep.png')}")
    except InputError as error:
        print(f"results in {folder}/results.json; no figure: {error}")
