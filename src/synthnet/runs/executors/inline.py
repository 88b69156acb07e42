"""In this process, one after the other: no overhead, nothing in parallel, nothing to stop."""

import contextlib
import importlib
from dataclasses import dataclass
from pathlib import Path

from synthnet.runs.executors import ENTRY


@dataclass(frozen=True)
class Finished:
    code: int

    def poll(self) -> int:
        return self.code

    def stop(self) -> None:
        """It is over."""


class Inline:
    def submit(self, command: list[str], log: Path) -> Finished:
        main = importlib.import_module(ENTRY).main
        with log.open("a") as out, contextlib.redirect_stderr(out), contextlib.redirect_stdout(out):
            return Finished(main(command))

    def close(self) -> None:
        """Nothing is kept."""


def build(workers: int, threads: int) -> Inline:
    return Inline()
