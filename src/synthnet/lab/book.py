"""Decisions of a recipe: found once, written down with their reasons, read again where the same command goes on."""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

from synthnet.errors import InputError, one_line
from synthnet.runs.journal import append, records


class Book:
    """What was decided so far, in order; read again where the same command goes on."""

    def __init__(self, path: Path, seconds: float):
        self.path, self.seconds, self.entries, self.at = path, seconds, records(path), 0
        self._before = self.entries[-1]["elapsed_s"] if self.entries else 0.0
        self._began = time.monotonic()

    @property
    def elapsed(self) -> float:
        return self._before + time.monotonic() - self._began

    @property
    def left(self) -> float:
        """Seconds; without end while what was decided is read again."""
        return math.inf if self.at < len(self.entries) else self.seconds - self.elapsed

    @property
    def goes_on(self) -> bool:
        """Whether there is time, or what was decided next is not the end."""
        return self.entries[self.at]["what"] != "end" if self.at < len(self.entries) else self.left > 0

    def more(self, what: str, share: float) -> bool:
        """Whether such a decision comes next: as it did before, or while that share of the time is left."""
        return self.entries[self.at]["what"] == what if self.at < len(self.entries) else self.left >= share * self.seconds

    def decide(self, what: str, find: Callable[..., tuple[object, str]], *given):
        """The value that was decided on, or that is found now and written down with its reason."""
        if self.at < len(self.entries):
            entry = self.entries[self.at]
            if entry.get("what") != what:
                raise InputError(f"{self.path} decided {entry.get('what')!r} where {what!r} comes: choose another run_dir")
            self.at += 1
            return entry["value"]
        value, why = find(*given)
        entry = {"what": what, "value": value, "why": why, "elapsed_s": round(self.elapsed, 1)}
        append(self.path, entry)
        self.entries.append(entry)
        self.at += 1
        left = f"{max(self.left, 0) / 60:.1f} min left"
        print(one_line(f"learn: {what}: {why} ({left})"), file=sys.stderr)
        return value
