"""Runs started: from settings given by name, or from another run that is resumed, forked with other settings, or replayed."""

import json
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from synthnet.config import compose, parse, read_config
from synthnet.errors import InputError
from synthnet.files import make_folder, write_atomic
from synthnet.policy import MixtureKnobs
from synthnet.runs import APPLIED, REQUESTS, read_given, read_status
from synthnet.stages import SHAPING, STAGES, as_text, check_stages, live_sections, run_stage, run_stages, without_shape
from synthnet.tasks import is_own
from synthnet.train import policy_of_run

MIXTURE = tuple(f"backbone.{each.name}" for each in fields(MixtureKnobs))  # of what shapes a policy, any one takes these
REWARDS = ("reward.python", "reward.examples")
CODE = (*REWARDS, "task")  # settings that may name code of the user's own: a file never does, a person has to


def run_command(command: str, overrides: list[str]) -> Path:
    """What a training command makes of `key=value` settings: a stage, or `run`. Raises: InputError for bad ones."""
    given = parse(overrides)
    return begin(command, compose(given), given, ["synthnet", command, *overrides])


def begin(command: str, config, given: Mapping[str, object], typed: list[str]) -> Path:
    if command == "run":
        return run_stages(config, given, typed)
    if command not in STAGES:
        raise InputError(f"{command} cannot be run again this way; repeat its command")
    return run_stage(command, config, given, typed)


def resume(folder: Path, code: Sequence[str] = ()) -> Path:
    """Go on with a run that was stopped, killed, or laid out by `lay_out`. Raises: InputError for one that is running, that no
    command of ours started, or that uses code of the user's own which `code` does not name."""
    status = read_status(folder)
    if status.state in ("running", "stalled"):
        raise InputError(f"{folder} is running")
    given, config = read_given(folder), read_config(folder)
    check_code(folder, config, code, given)
    config.run_dir = str(folder)
    return begin(status.stage or "", config, given, list(status.command))


def code_of(given: Mapping[str, object]) -> list[str]:
    """The code of the user's own that settings name."""
    named = [each for name in REWARDS for each in given.get(name) or ()]
    return [*named, *([str(given["task"])] if is_own(given.get("task")) else [])]


def check_code(folder: Path, config, named: Sequence[str], given: Mapping[str, object] | None = None) -> None:
    """A run directory never names code, a person has to. Raises: InputError for code in its settings, as composed or as given,
    that is not named."""
    composed = {"reward.python": config.reward.python, "reward.examples": config.reward.examples, "task": config.task.name}
    if strange := [each for each in (*code_of(composed), *code_of(given or {})) if each not in named]:
        named = f"--code {shlex.quote(strange[0])}"
        raise InputError(f"{folder} uses code of yours: give its command again, or name it here, as {named}")


def fork(folder: Path, changes: Mapping[str, object], run_dir: str | None) -> tuple[str, dict[str, object]]:
    """The stage and the settings of a new run like an old one but for `changes`.

    What fits is reused: the zoo; and, for a stage that goes on from a policy, the old run's best policy, unless the changes are
    of what a policy is built of or name another one. Raises: InputError where the old run cannot be read.
    """
    stage, given = read_status(folder).stage or "", _given(folder, changes)
    rebuilt = any(name.partition(".")[0] in SHAPING and name not in MIXTURE for name in changes)
    made = policy_of_run(folder)
    if stage in ("distil", "grpo", "critic") and not rebuilt and "policy_from" not in changes and made.exists():
        given = {**without_shape(given), "policy_from": str(made)}
        if "distil.standardised" in given:
            given["distil.standardised"] = 0
    return stage, {**given, **changes, "run_dir": run_dir or next_free(folder)}


def replay(folder: Path, run_dir: str | None) -> tuple[str, dict[str, object]]:
    """The stage and the settings of a run that repeats an old one with all that was applied to it, as its new run directory
    then says. Raises: InputError where the old run cannot be read, or the new place is taken."""
    status, target, given = read_status(folder), Path(run_dir or next_free(folder)), _given(folder)
    if not live_sections(status.stage):
        raise InputError(f"{folder} is a {status.stage} run: replay the runs of its stages, one by one")
    if target.exists():
        raise InputError(f"{target} exists; pass run_dir=PATH of a new one")
    target.mkdir(parents=True)
    for name in (APPLIED, REQUESTS):
        if (folder / name).exists():
            shutil.copyfile(folder / name, target / name)
    return status.stage, {**given, "run_dir": str(target)}


def lay_out(command: str, given: Mapping[str, object]) -> Path:
    """A run directory that `resume` will begin, checked: how one process asks another for a run. Returns its folder. Raises:
    InputError for settings that the run cannot have, or a folder that holds another run."""
    config = compose(given)
    if command == "run":
        check_stages(config)
    if command not in (*STAGES, "run"):
        raise InputError(f"a {command} run cannot be begun this way: give its command")
    folder, task = Path(config.run_dir), config.build_task()
    text, path = config.text(task), folder / "config.yaml"
    if path.exists() and path.read_text() != text:
        raise InputError(f"{folder} holds a run with another configuration; choose another run_dir")
    make_folder(folder)
    typed = ["synthnet", command, *as_text(given)]
    record = {"stage": command, "task": task.name, "updates": 0, "command": typed, "given": dict(given)}
    record |= {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "outcome": None}
    write_atomic(path, text)
    write_atomic(folder / "run.json", json.dumps(record, indent=1) + "\n")
    return folder


def next_free(folder: Path) -> str:
    """folder-2, folder-3 …: the first that does not exist."""
    return next(str(path) for n in range(2, 10_000) if not (path := folder.with_name(f"{folder.name}-{n}")).exists())


def _given(folder: Path, changes: Mapping[str, object] | None = None) -> dict[str, object]:
    """The settings that a run was given. A file never names code: code of the user's own has to be named again."""
    given = read_given(folder)
    for name in CODE:
        code = given.get(name) if name != "task" or is_own(given.get(name)) else None
        if code and name not in (changes or {}):
            raise InputError(
                f"{folder} uses code of yours ({code}): give its command again, or name it in this one, as {name}=…"
            )
    return given
