"""The run directory: the one interface between a training, its resumption, and whoever looks at it.

config.yaml  run.json {stage, task, command, given, versions, commit, pid, host, started, outcome}  lock  heartbeat
metrics.jsonl  checkpoints/
patches.jsonl (requests) and applied.jsonl (what was done about them) belong to live patching, `live.py`.
"""

import contextlib
import hashlib
import json
import math
import os
import platform
import subprocess
import time
import warnings
from pathlib import Path
from typing import Protocol

import safetensors
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from synthnet.errors import InputError
from synthnet.files import lock, raw_bytes, write_atomic, write_safetensors
from synthnet.runs import ranks
from synthnet.runs.journal import append, records
from synthnet.runs.setup import Setup

LOCK_TRIES, LOCK_PAUSE_S = 10, 0.05
CHECKPOINT, CHECKPOINT_BEFORE = "training.safetensors", "training-before.safetensors"


class Tracker(Protocol):
    """Whatever else wants a run's metrics (`tracking.py`)."""

    def log(self, update: int, metrics: dict) -> None: ...

    def close(self) -> None: ...


class RunDirectory:
    """An open, locked run directory. Opening an existing one resumes it if its config is the same, else is refused."""

    def __init__(self, setup: Setup):
        self.path = setup.folder
        self.patch_version = 0
        self.trackers: list[Tracker] = []
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ("lock" if ranks.first() else f"lock-{ranks.rank()}")).open("w")
        except OSError as error:
            raise InputError(f"cannot use {self.path} as run directory: {error.strerror}") from error
        if not self._locked():
            self.close()
            raise InputError(f"{self.path} is in use by another process; choose another run_dir")
        try:
            self._claim(setup)
        except BaseException:
            self.close()
            raise

    def _locked(self) -> bool:
        """Take the lock. Whoever looks whether a run lives holds it for an instant, so one refusal is not the last word."""
        for _ in range(LOCK_TRIES):
            if lock(self._lock):
                return True
            time.sleep(LOCK_PAUSE_S)
        return False

    def _claim(self, setup: Setup) -> None:
        config = self.path / "config.yaml"
        if config.exists() and config.read_bytes() != setup.text.encode():
            raise InputError(
                f"{self.path} holds a run with another configuration, or of a problem file that has changed since; choose "
                "another run_dir, or repeat its settings to resume"
            )
        if ranks.first():
            write_atomic(config, setup.text)
        self._record = {
            "stage": setup.stage,
            "task": setup.task,
            "updates": setup.updates,
            "command": list(setup.command),
            "given": dict(setup.given),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "safetensors": safetensors.__version__,
            },
            "commit": _commit(),
            "pid": os.getpid(),
            "host": platform.node(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "threads": torch.get_num_threads(),
            "outcome": None,
        }
        self._write_record()
        if ranks.first():
            write_atomic(self.path / "heartbeat", str(time.time()))

    def _write_record(self) -> None:
        if not ranks.first():
            return
        write_atomic(self.path / "run.json", json.dumps(self._record, indent=1) + "\n")

    def log(self, update: int, metrics: dict) -> None:
        """Append one line to metrics.jsonl, touch the heartbeat, and pass the numbers on to the trackers.

        Raises: InputError when the disk is full.
        """
        if not ranks.first():
            return
        row = {"update": update, "patch_version": self.patch_version, **metrics}
        append(self.path / "metrics.jsonl", {name: None if _not_finite(value) else value for name, value in row.items()})
        try:
            (self.path / "heartbeat").write_text(str(time.time()))
            for tracker in self.trackers:
                tracker.log(update, metrics)
        except OSError as error:
            raise InputError(
                f"cannot write into {self.path}: {error.strerror or error}; the last checkpoint is kept"
            ) from error

    def metrics(self) -> list[dict]:
        """All complete lines of metrics.jsonl."""
        return [row for row in records(self.path / "metrics.jsonl") if isinstance(row.get("update"), int)]

    def cut_back(self, update: int) -> None:
        """Drop the metrics after `update`, so that a resumed run continues the file of an uninterrupted one."""
        if not ranks.first():
            return
        kept = [row for row in self.metrics() if row["update"] <= update]
        write_atomic(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))

    def save_checkpoint(self, tensors: dict[str, Tensor], update: int, record: dict) -> None:
        """Save what training needs to go on, as one atomic file; the one before is kept beside it."""
        if not ranks.first():
            return
        metadata = {"update": str(update), "record": json.dumps(record), "sha256": digest(tensors)}
        latest = self.path / "checkpoints" / CHECKPOINT
        if latest.exists():
            latest.replace(latest.with_name(CHECKPOINT_BEFORE))
        write_safetensors(latest, tensors, metadata)

    def load_checkpoint(self) -> tuple[dict[str, Tensor], int, dict] | None:
        """The last whole checkpoint: tensors, update, record; None for a fresh run. Warns where it has to pass a damaged one
        over. Raises: InputError where there are only damaged ones."""
        damaged = []
        for name in (CHECKPOINT, CHECKPOINT_BEFORE):
            path = self.path / "checkpoints" / name
            if not path.exists():
                continue
            try:
                return _read_checkpoint(path)
            except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
                warnings.warn(f"{path} is damaged ({error}); going back to the checkpoint before it", stacklevel=2)
                damaged.append(str(path))
        if damaged:
            raise InputError(f"no whole checkpoint is left ({', '.join(damaged)}); delete the run directory and start again")
        return None

    def close(self) -> None:
        self._lock.close()

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _) -> None:
        outcome = "done" if kind is None else "stopped" if kind is KeyboardInterrupt else f"failed: {error}"[:400]
        self._record |= {"outcome": outcome, "ended": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        try:
            self._write_record()
        except InputError as unwritable:  # a full disk must not hide what went wrong before
            warnings.warn(str(unwritable), stacklevel=2)
        for tracker in self.trackers:
            with contextlib.suppress(OSError):  # its folder is gone
                tracker.close()
        self.close()


def _not_finite(value: object) -> bool:
    """Whether JSON has no word for a value."""
    return isinstance(value, float) and not math.isfinite(value)


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of tensors, by name."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + b"\0" + raw_bytes(tensors[name]))
    return found.hexdigest()


def _read_checkpoint(path: Path) -> tuple[dict[str, Tensor], int, dict]:
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    if metadata["sha256"] != digest(tensors):
        raise ValueError("its checksum does not match")
    return tensors, int(metadata["update"]), json.loads(metadata["record"])


def _commit() -> str | None:
    """The git commit of the code that runs, if it runs from a checkout."""
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None
