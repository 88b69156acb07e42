"""Runs made from runs: the command that resumes one, forks it with other settings, or replays it."""

import shutil
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from synthnet.errors import InputError
from synthnet.runs.knobs import LIVE_SECTIONS, MixtureKnobs
from synthnet.runs.live import APPLIED, REQUESTS
from synthnet.runs.status import COMMANDS, RunStatus, read_status
from synthnet.train.snapshot import policy_of_run

SHAPING = ("tokens", "backbone", "action", "k_max", "imagined")  # settings that a policy of other ones does not fit
MIXTURE = tuple(f"backbone.{field.name}" for field in fields(MixtureKnobs))  # of which any policy takes these


def resume_settings(folder: Path) -> tuple[str, list[str]]:
    """The stage and the settings that a run was started with, which go on where it was stopped.

    Raises: InputError for a run that is running, that no command started, or whose settings name code: a file never does.
    """
    status = read_status(folder)
    if status.state in ("running", "stalled"):
        raise InputError(f"{folder} is running")
    return status.stage, with_settings(_settings(status), [f"run_dir={folder}"])


def fork_settings(folder: Path, changes: list[str], run_dir: str | None) -> tuple[str, list[str]]:
    """The stage and the settings of a new run like an old one but for `changes`.

    What fits is reused: the zoo; and, for a stage that goes on from a policy, the old run's best policy, unless the changes are
    of what a policy is built of or name another one. Raises: InputError where the old run cannot be read.
    """
    status = read_status(folder)
    target = run_dir or next_free(folder)
    settings = _settings(status, changes)
    keys = {text.partition("=")[0] for text in changes}
    rebuilt = any(key.partition(".")[0] in SHAPING and key not in MIXTURE for key in keys)
    made = policy_of_run(folder)
    if status.stage in ("distil", "grpo", "critic") and not rebuilt and "policy_from" not in keys and made.exists():
        begun = ["distil.standardised=0"] if any(text.startswith("distil.standardised=") for text in settings) else []
        settings = with_settings(without_shape(settings), [*begun, f"policy_from={made}"])
    return status.stage, with_settings(with_settings(settings, changes), [f"run_dir={target}"])


def replay_settings(folder: Path, run_dir: str | None) -> tuple[str, list[str]]:
    """The stage and the settings of a run that repeats an old one with all that was applied to it, as its new run directory
    then says. Raises: InputError where the old run cannot be read, or the new place is taken."""
    status, target = read_status(folder), Path(run_dir or next_free(folder))
    settings = _settings(status)
    if status.stage not in LIVE_SECTIONS:
        raise InputError(f"{folder} is a {status.stage} run: replay the runs of its stages, one by one")
    if target.exists():
        raise InputError(f"{target} exists; pass run_dir=PATH of a new one")
    target.mkdir(parents=True)
    for name in (APPLIED, REQUESTS):
        if (folder / name).exists():
            shutil.copyfile(folder / name, target / name)
    return status.stage, with_settings(settings, [f"run_dir={target}"])


def with_settings(settings: list[str], changes: list[str]) -> list[str]:
    """Settings of which those with the same key as a change are replaced by it."""
    keys = {text.partition("=")[0] for text in changes}
    return [*(text for text in settings if text.partition("=")[0] not in keys), *changes]


def without_shape(settings: list[str]) -> list[str]:
    """Settings but for those of what a policy is built of, which a policy that is there already brings along."""
    return [text for text in settings if text.partition("=")[0].partition(".")[0] not in SHAPING]


def next_free(folder: Path) -> str:
    """folder-2, folder-3 …: the first that does not exist."""
    return next(str(path) for n in range(2, 10_000) if not (path := folder.with_name(f"{folder.name}-{n}")).exists())


def _settings(status: RunStatus, changes: Sequence[str] = ()) -> list[str]:
    """The settings of a run's recorded command. A file never names code: code of the user's own has to be named again."""
    if (
        status.command[:1] != ("synthnet",)
        or status.stage not in COMMANDS
        or not all("=" in text for text in status.command[2:])
    ):
        raise InputError(f"{status.path} was not started by a synthnet training command: {' '.join(status.command)[:200]}")
    code = [text for text in status.command[2:] if text.startswith("reward.python=")]
    if code and not any(text.startswith("reward.python=") for text in changes):
        raise InputError(f"{status.path} uses code of yours ({code[0]}): give its command again, or name the code in this one")
    return list(status.command[2:])
