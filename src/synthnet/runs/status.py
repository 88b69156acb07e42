"""What a run directory says of its run from outside: which stage, how far, whether it lives. Reads only; takes no lock for
long."""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from synthnet.errors import InputError
from synthnet.files import lock
from synthnet.runs.journal import parse

DEPTHS = ("*", "*/*", "*/*/*")  # runs, members and stages, stages of the trials of a sweep
STALLED_S = 600  # a running run whose heartbeat is older is shown as stalled
TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class RunStatus:
    """state: running, stalled (running without a sign of life), done, stopped (on request; can be resumed), failed (with the
    reason in `note`), dead (killed; can be resumed) or foreign (no run of ours, or damaged)."""

    name: str
    path: str
    state: str
    stage: str | None
    task: str | None
    update: int
    updates: int
    score: float | None
    patch_version: int
    age_s: float | None
    command: tuple[str, ...]
    note: str

    def as_dict(self) -> dict:
        return asdict(self)


def is_run(folder: Path) -> bool:
    try:
        return (folder / "run.json").is_file() and (folder / "config.yaml").is_file()
    except (OSError, ValueError):  # a name too long, or with a zero byte
        return False


def lies_in(folder: Path, root: Path) -> bool:
    """Whether a folder lies below another, links followed: what a link leads out to is none of that folder's runs."""
    try:
        return folder.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):  # a name too long, or with a zero byte; a link to itself
        return False


def list_runs(root: str | Path) -> list[RunStatus]:
    """The runs in a folder, those within families, pipelines and sweeps included, newest first."""
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder of runs")
    folders = [folder for depth in DEPTHS for folder in root.glob(depth) if is_run(folder) and lies_in(folder, root)]
    folders.sort(key=lambda folder: (folder / "run.json").stat().st_mtime, reverse=True)
    return [_read_or_foreign(folder, root) for folder in folders]


def _read_or_foreign(folder: Path, root: Path) -> RunStatus:
    """The status of a run; a damaged one is listed as foreign, and hides no other."""
    try:
        return read_status(folder, root)
    except InputError as error:
        name = str(folder.relative_to(root))
        return RunStatus(name, str(folder), "foreign", None, None, 0, 0, None, 0, None, (), str(error))


def read_status(folder: str | Path, root: Path | None = None) -> RunStatus:
    """The status of one run directory. Raises: InputError where it is none."""
    folder = Path(folder)
    if not is_run(folder):
        raise InputError(f"{folder} is not a run directory (no run.json and config.yaml)")
    try:
        record = json.loads((folder / "run.json").read_text())
        command = tuple(map(str, record["command"]))
        outcome, updates = record.get("outcome"), record.get("updates", 0)
        stage, task = (x if isinstance(x := record.get(key), str) else None for key in ("stage", "task"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{folder}/run.json is damaged: {error!r}") from error
    tail = _tail(folder / "metrics.jsonl")
    heartbeat = folder / "heartbeat"
    age = time.time() - heartbeat.stat().st_mtime if heartbeat.exists() else None
    scores = [row["val/score"] for row in tail if isinstance(row.get("val/score"), float)]
    return RunStatus(
        str(folder.relative_to(root)) if root else folder.name,
        str(folder),
        _state(folder, outcome, age),
        stage,
        task,
        max((row["update"] for row in tail if isinstance(row.get("update"), int)), default=0),
        updates if type(updates) is int else 0,
        scores[-1] if scores else None,
        next((row["patch_version"] for row in reversed(tail) if "patch_version" in row), 0),
        age,
        command,
        outcome if isinstance(outcome, str) and outcome.startswith("failed") else "",
    )


def read_settings(folder: Path) -> dict:
    """The composed settings that a run directory records, nested by group. Raises: InputError where it is no run."""
    import yaml  # comes with omegaconf

    read_status(folder)
    try:
        tree = yaml.safe_load((folder / "config.yaml").read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{folder}/config.yaml is damaged: {str(error)[:200]}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{folder}/config.yaml is damaged: it holds no settings")
    return tree


def read_given(folder: Path) -> dict[str, object]:
    """The settings that a run was given by name. Raises: InputError where it is no run of ours."""
    read_status(folder)
    given = json.loads((folder / "run.json").read_text()).get("given")
    if not isinstance(given, dict):
        raise InputError(f"{folder} does not say which settings it was given; repeat its command")
    return given


def _state(folder: Path, outcome: str | None, age: float | None) -> str:
    if is_locked(folder):
        return "stalled" if age is not None and age > STALLED_S else "running"
    if outcome in ("done", "stopped"):
        return outcome
    if isinstance(outcome, str) and outcome.startswith("failed"):
        return "failed"
    return "done" if (folder / "policy.safetensors").exists() or (folder / "zoo.json").exists() else "dead"


def is_locked(folder: Path) -> bool:
    """Whether a process works in a run directory. The lock dies with its process, so a killed run is not locked."""
    try:
        handle = os.open(folder / "lock", os.O_RDONLY | os.O_NONBLOCK)  # whatever it is, a pipe even
    except OSError:
        return False
    try:
        return not lock(handle, shared=True)
    finally:
        os.close(handle)


def _tail(path: Path) -> list[dict]:
    """The records in the last part of a file; a half-written last line is none."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - TAIL_BYTES, 0))
        lines = file.read().split(b"\n")
    return [record for line in lines[:-1] if (record := parse(line)) is not None]
