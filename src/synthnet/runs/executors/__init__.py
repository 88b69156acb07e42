"""Executors: where synthnet commands run. One file each; all take the same commands and give the same handles.

A command is a list of arguments for `synthnet`. Whatever it makes lies in a run directory on a disk that all share, so an
executor needs to know nothing of results; a command that is given again goes on where it was stopped.
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol

from synthnet.errors import InputError

ENTRY = "synthnet.cli"  # the command line's own module


class Handle(Protocol):
    """One submitted command."""

    def poll(self) -> int | None:
        """Its exit code, or None while it is under way; negative where it was killed or its machine was lost."""

    def stop(self) -> None:
        """End it as soon as may be."""


class Executor(Protocol):
    def submit(self, command: list[str], log: Path) -> Handle:
        """Run a command; what it prints goes to `log`."""

    def close(self) -> None: ...


def build_executor(name: str, workers: int, threads: int) -> Executor:
    """The executor of that name, for `workers` commands at a time of `threads` cores each.

    Raises: InputError where its package is not installed or the machine has fewer cores.
    """
    return importlib.import_module(f"synthnet.runs.executors.{name}").build(workers, threads)


def check_cores(workers: int, threads: int) -> None:
    """Refuse more work at a time than this machine has cores for."""
    cores = os.cpu_count() or 1
    if workers * threads > cores:
        raise InputError(f"{workers} workers of {threads} threads need {workers * threads} cores, this machine has {cores}")


def command_line(command: list[str]) -> list[str]:
    return [sys.executable, "-m", ENTRY, *command]


def environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


def run_to_end(command: list[str], log: str, threads: int, folder: str) -> int:
    """Run a command in a process of its own and wait for it; what a worker of a cluster does. Returns the exit code."""
    with Path(folder, log).open("ab") as out:
        return subprocess.run(
            command_line(command), stdout=out, stderr=out, cwd=folder, env=environment(threads), check=False
        ).returncode
