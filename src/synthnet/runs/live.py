"""Live patching: requests that reach a run while it trains, and what it does about them at the boundary of an update.

patches.jsonl holds the requests, appended by anyone, one a line: {"kind": "patch", "values": {knob: value}, "over": n},
{"kind": "rollback", "to": version, "weights": bool, "over": n} or {"kind": "stop"}. applied.jsonl holds what the run did,
written by the run alone and synced before it takes effect: what was accepted, with a version of its own and the update that
it acted before; what was refused, with the reason; and what a guard took back. A resumed run repeats the entries at their
updates, and takes new requests only after the last of them, so its metrics are those of a run that was never interrupted. A run
directory that holds another run's applied.jsonl, and its settings, replays that run.
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from synthnet.errors import InputError
from synthnet.policy import MixtureKnobs, Policy
from synthnet.runs import ranks
from synthnet.runs.journal import append, complete_lines, parse, records
from synthnet.runs.knobs import MOST_UPDATES, Dials
from synthnet.runs.lab import Schedule

REQUESTS, APPLIED = "patches.jsonl", "applied.jsonl"


@dataclass(frozen=True)
class Turned:
    """What the boundary of an update asks of the loop: to stop, or to take the weights back to the best so far."""

    stop: bool = False
    weights: bool = False


class Live:
    """The hot knobs of one run and its two journals. `sections`: group -> settings object that the stage reads at every
    update; `check` refuses settings that do not go together."""

    def __init__(
        self, sections: Mapping[str, object], schedules: Mapping[str, Schedule], check: Callable[[], None] = lambda: None
    ):
        self.sections, self.schedules = dict(sections), schedules
        self.check = check
        Dials(self.sections, {})  # a value out of its bounds is refused before any work
        self._entries: list[dict] = []
        self._seen, self._size, self._repeated, self.version = 0, -1, 0, 0

    def open(self, folder: Path, policy: Policy) -> None:
        """Begin, or go on after what applied.jsonl says."""
        self.folder = folder
        if policy.settings:
            self.sections = {**self.sections, "backbone": MixtureKnobs(**policy.settings)}
        self.dials = Dials(self.sections, {n: s for n, s in self.schedules.items() if n.partition(".")[0] in self.sections})
        for ends in ("start", "end"):
            self._try({name: float(getattr(schedule, ends)) for name, schedule in self.dials.schedules.items()}, {})
        self._entries = records(folder / APPLIED)
        ranks.together()  # or a slow rank would read what it is also told
        for entry in self._entries:
            _check_entry(entry, folder)
        self._seen = max((entry.get("request") or 0 for entry in self._entries), default=0)

    @property
    def past(self) -> list[dict]:
        """The entries that have acted, refusals among them."""
        return self._entries[: self._repeated]

    def turn(self, update: int, policies: Sequence[Policy]) -> tuple[Turned, dict[str, object]]:
        """Take what is due before an update (0-based), and give settings and policies the values that hold for it. Returns what
        the loop has to do, and the values of the knobs that ever moved."""
        acted = self._due(update)
        if self._repeated == len(self._entries):
            acted += self._heard(update)
        values = self.dials.set(update)
        for policy in policies if any(name.startswith("backbone.") for name in values) else ():
            policy.settings = vars(self.sections["backbone"])
        asked = Turned(any(entry["kind"] == "stop" for entry in acted), any(entry.get("weights") for entry in acted))
        return asked, values

    def _due(self, update: int) -> list[dict]:
        """Entries of an earlier life of this run up to this boundary. Of those before it, and of a guard, the checkpoint holds
        what they did to the weights; stops are not repeated."""
        found = []
        while self._repeated < len(self._entries) and self._entries[self._repeated]["update"] <= update:
            entry = self._entries[self._repeated]
            self._repeated += 1
            self._take(entry)
            found += [entry] if entry["kind"] not in ("stop", "guard") and entry["update"] == update else []
        return found

    def _take(self, entry: dict) -> None:
        if entry["kind"] == "refused":
            return
        values = self.dials.check(entry.get("values", {}))  # never trusted, not even from our own file
        self.version = entry["version"]
        self.dials.turn(entry["update"], values, entry.get("released", []), entry.get("over", 0))

    def _heard(self, update: int) -> list[dict]:
        """What rank 0 did about new requests, done on every rank before the same update."""
        before = len(self._entries)
        if ranks.first():
            self._accept_new(update)
        heard = ranks.told(self._entries[before:] if ranks.first() else ())
        for entry in () if ranks.first() else heard:
            self._record(entry)
        return heard

    def _record(self, entry: dict) -> dict:
        if ranks.first():
            append(self.folder / APPLIED, {**entry, "time_s": time.time()}, sync=True)
        self._entries.append(entry)
        self._repeated += 1
        self._take(entry)
        return entry

    def _accept_new(self, update: int) -> None:
        path = self.folder / REQUESTS
        size = path.stat().st_size if path.exists() else 0
        if size == self._size:
            return
        self._size = size
        for number, line in enumerate(complete_lines(path)[self._seen :], self._seen + 1):
            self._seen = number
            try:
                entry = self._judge(parse(line), update)
            except InputError as error:
                self._record({"request": number, "update": update, "kind": "refused", "reason": str(error)})
                warnings.warn(f"request {number} refused at update {update}: {error}", stacklevel=4)
                continue
            self._record({"request": number, "version": self.version + 1, "update": update, **entry})

    def _judge(self, request: dict | None, update: int) -> dict:
        """What a request asks for, checked. Raises: InputError with the reason of a refusal."""
        if request is None or request.get("kind") not in ("patch", "rollback", "stop"):
            raise InputError("expected one JSON object a line with kind patch, rollback or stop")
        if request["kind"] == "stop":
            return {"kind": "stop"}
        over = request.get("over", 0)
        if type(over) is not int or not 0 <= over <= MOST_UPDATES:
            raise InputError(f"over must be a whole number of updates from 0 to {MOST_UPDATES}, got {str(over)[:40]}")
        if request["kind"] == "rollback":
            return self._judge_rollback(request, over)
        values = request.get("values")
        if not isinstance(values, dict) or not values:
            raise InputError("a patch needs values: {knob: value}")
        values = self.dials.check(values)
        self._try_all(values)
        return {"kind": "patch", "values": values, "over": over}

    def _judge_rollback(self, request: dict, over: int) -> dict:
        to = request.get("to", max(self.version - 1, 0))
        if type(to) is not int or not 0 <= to <= self.version:
            raise InputError(f"to must be a patch version from 0 to {self.version}, got {str(to)[:40]}")
        if not isinstance(request.get("weights", False), bool):
            raise InputError("weights must be true or false")
        values, released = self._targets(to)
        self._try_all(values | {name: self.dials.base[name] for name in released})
        return {
            "kind": "rollback",
            "to": to,
            **values_of(values, released),
            "over": over,
            "weights": request.get("weights", False),
        }

    def _targets(self, version: int) -> tuple[dict[str, object], list[str]]:
        """The values that knobs had, or were moving to, after a version; and those that followed their own course then."""
        values: dict[str, object] = {}
        moved: set[str] = set()
        for entry in self.past:
            if entry["kind"] == "refused":
                continue
            moved |= {*entry.get("values", {}), *entry.get("released", [])}
            if entry["version"] <= version:
                values |= entry.get("values", {})
                for name in entry.get("released", []):
                    values.pop(name, None)
        return values, sorted(moved - set(values))

    def _try_all(self, values: dict[str, object]) -> None:
        """Refuse values that do not go together with the rest as it is, or as it is going to be."""
        self._try(values, {})
        self._try(values, {name: self.dials.target(name) for name in self.dials.moved})

    def _try(self, values: dict[str, object], others: dict[str, object]) -> None:
        """Refuse values that do not go together with these others, and leave everything as it was."""
        trial, values = Dials(self.sections, {}), {**others, **values}
        trial.turn(0, values, [], 0)
        before = {name: trial.base[name] for name in values}
        trial.set(0)
        try:
            self.check()
        finally:
            trial.turn(0, before, [], 0)
            trial.set(0)

    def guard(self, update: int, reason: str, action: str, good_update: int) -> bool:
        """Note what a guard does at the end of an update; where it goes back, so do the knobs that were patched since the best
        policy was measured. Returns whether there were any, in which case they are to blame."""
        if self._repeated < len(self._entries) and self._entries[self._repeated]["update"] == update:
            entry = self._entries[self._repeated]  # the same guard, in an earlier life of this run
            self._repeated += 1
            self._take(entry)
            return bool(entry["undone"])
        since: list[int] = []
        for past in self.past if action == "rollback" else []:
            if past["kind"] == "guard":
                since = []  # what came before it was undone, or was not to blame
            elif past["kind"] in ("patch", "rollback") and past["update"] >= good_update:
                since.append(past["version"])
        entry = {
            "update": update,
            "kind": "guard",
            "version": self.version + 1,
            "action": action,
            "reason": reason,
            "undone": since,
        }
        if since:
            entry |= values_of(*self._targets(since[0] - 1))
        self._record(entry)
        return bool(since)


def _check_entry(entry: dict, folder: Path) -> None:
    """Refuse an applied.jsonl that this code did not write: what it says is acted upon."""
    fits = entry.get("kind") in ("patch", "rollback", "stop", "guard", "refused") and type(entry.get("update")) is int
    fits = fits and (entry["kind"] == "refused" or type(entry.get("version")) is int)
    fits = fits and isinstance(entry.get("values", {}), dict) and isinstance(entry.get("released", []), list)
    fits = fits and all(isinstance(name, str) for name in entry.get("released", []))
    fits = fits and type(entry.get("over", 0)) is int and isinstance(entry.get("undone", []), list)
    if not fits or type(entry.get("request") or 0) is not int:
        raise InputError(f"{folder / APPLIED} is damaged: {str(entry)[:120]}; start a new run, or restore the file")


def values_of(values: dict[str, object], released: list[str]) -> dict:
    """The fields of an entry that sets knobs."""
    return {"values": values, "released": released}
