"""Processes on this machine, within its cores."""

import subprocess
from pathlib import Path

from synthnet.runs.executors import check_cores, command_line, environment


class Process:
    def __init__(self, command: list[str], log: Path, threads: int):
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command_line(command), stdout=out, stderr=out, env=environment(threads), start_new_session=True
            )

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        self._process.terminate()


class Processes:
    def __init__(self, threads: int):
        self.threads = threads

    def submit(self, command: list[str], log: Path) -> Process:
        return Process(command, log, self.threads)

    def close(self) -> None:
        """Processes outlive this one; a sweep that is given again waits for them."""


def build(workers: int, threads: int) -> Processes:
    check_cores(workers, threads)
    return Processes(threads)
