"""The run directory: the one interface between a training, its resumption, and whoever looks at it.

config.yaml  run.json {command, versions, commit, pid, host, started}  lock  heartbeat  metrics.jsonl  checkpoints/
patches.jsonl and applied.jsonl belong to live patching; report.json is written by reports.
"""

import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from synthnet.errors import InputError
from synthnet.files import write_atomic, write_safetensors

CHECKPOINT = "training.safetensors"


class RunDirectory:
    """An open, locked run directory. Opening an existing one resumes it if its config is the same, else is refused."""

    def __init__(self, path: str | Path, config_yaml: str):
        self.path = Path(path)
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "lock").open("w")
        except OSError as error:
            raise InputError(f"cannot use {path} as run directory: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise InputError(f"{path} is in use by another process; choose another run_dir") from error
        try:
            self._claim(config_yaml)
        except BaseException:
            self.close()
            raise

    def _claim(self, config_yaml: str) -> None:
        config = self.path / "config.yaml"
        if config.exists() and config.read_text() != config_yaml:
            raise InputError(
                f"{self.path} holds a run with another configuration; choose another run_dir, or repeat its settings to resume"
            )
        write_atomic(config, config_yaml)
        record = {
            "command": ["synthnet", *sys.argv[1:]],
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
        }
        write_atomic(self.path / "run.json", json.dumps(record, indent=1) + "\n")

    def log(self, update: int, metrics: dict) -> None:
        """Append one line to metrics.jsonl and touch the heartbeat. Raises: InputError when the disk is full."""
        try:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"update": update, "patch_version": 0, **metrics}) + "\n")
            (self.path / "heartbeat").write_text(str(time.time()))
        except OSError as error:
            raise InputError(f"cannot write into {self.path}: {error.strerror}; the last checkpoint is kept") from error

    def metrics(self) -> list[dict]:
        """All complete lines of metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        rows = []
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break  # a half-written last line: the process died while writing it
        return rows

    def cut_back(self, update: int) -> None:
        """Drop the metrics after `update`, so that a resumed run continues the file of an uninterrupted one."""
        kept = [row for row in self.metrics() if row["update"] <= update]
        write_atomic(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))

    def save_checkpoint(self, tensors: dict[str, Tensor], update: int, record: dict) -> None:
        """Save what training needs to go on, as one atomic file."""
        metadata = {"update": str(update), "record": json.dumps(record)}
        write_safetensors(self.path / "checkpoints" / CHECKPOINT, tensors, metadata)

    def load_checkpoint(self) -> tuple[dict[str, Tensor], int, dict] | None:
        """The last checkpoint: tensors, update, record; None for a fresh run."""
        path = self.path / "checkpoints" / CHECKPOINT
        if not path.exists():
            return None
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        return load_file(path), int(metadata["update"]), json.loads(metadata["record"])

    def close(self) -> None:
        self._lock.close()

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _commit() -> str | None:
    """The git commit of the code that runs, if it runs from a checkout."""
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None
