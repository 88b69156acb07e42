"""The hot knobs of a run while it trains: their values at each update.

A hot knob's value at an update is a pure function of the settings, the schedules and the entries of applied.jsonl, so a resumed
or replayed run turns them alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from synthnet.errors import InputError
from synthnet.runs.lab import Schedule
from synthnet.settings import hot_knobs, hot_value, owner_of, read_value

MOST_UPDATES = 1_000_000  # what a patch may be spread over


@dataclass(frozen=True)
class _Turn:
    """From update `update` on: to `value`, over `over` updates; or, released, back to the settings' own course."""

    update: int
    value: object = None
    over: int = 0
    released: bool = False


class Dials:
    """The hot knobs of one run: their course by the settings and schedules, and what patches made of it.

    Raises: InputError where a setting or the end of a schedule is none of a knob's values.
    """

    def __init__(self, sections: Mapping[str, object], schedules: Mapping[str, Schedule]):
        self.sections = sections
        self.kinds = {group: type(section) for group, section in sections.items()}
        self.base = {name: read_value(self._section(name), name) for name in hot_knobs(self.kinds)}
        self.check({name: value for name, value in self.base.items() if value not in (None, [])})  # which leave it to the stage
        self.schedules = dict(schedules)
        for name, schedule in self.schedules.items():
            schedule.check(name)
            for end in (schedule.start, schedule.end):
                hot_value(name, end, self.kinds)
            if not isinstance(self.base[name], float):
                raise InputError(f"lab.schedules.{name}: only settings that are numbers with a fraction can follow a schedule")
        self._turns: dict[str, list[_Turn]] = {}
        self._starts: dict[tuple[str, int], object] = {}

    def _section(self, name: str) -> object:
        return self.sections[name.partition(".")[0]]

    def check(self, values: Mapping[str, object]) -> dict[str, object]:
        """The values as the knobs hold them. Raises: InputError where `hot_value` does."""
        return {name: hot_value(name, value, self.kinds) for name, value in values.items()}

    def turn(self, update: int, values: Mapping[str, object], released: list[str], over: int) -> None:
        """From `update` on, knobs go to `values`; those released go back to the settings' own course at once."""
        for name, value in values.items():
            self._turns.setdefault(name, []).append(_Turn(update, value, over))
            self._began(name, len(self._turns[name]) - 1)
        for name in (each for each in released if each in self.base):
            self._turns.setdefault(name, []).append(_Turn(update, released=True))

    def value(self, name: str, update: int) -> object:
        """A knob's value at an update: numbers with a fraction move linearly, all others switch at once."""
        return self._after(name, update, len(self._turns.get(name, [])))

    def _after(self, name: str, update: int, n_turns: int) -> object:
        if n_turns == 0 or (turn := self._turns[name][n_turns - 1]).released:
            schedule = self.schedules.get(name)
            return self.base[name] if schedule is None else schedule.value(update)
        done = update + 1 - turn.update
        if done >= turn.over or type(turn.value) is not float:
            return turn.value
        if type(before := self._began(name, n_turns - 1)) is not float:
            return turn.value
        return before + (turn.value - before) * max(done, 0) / turn.over

    def _began(self, name: str, number: int) -> object:
        """The value that turn `number` of a knob set out from, computed once."""
        turn = self._turns[name][number]
        key = (name, number)
        if key not in self._starts:
            self._starts[key] = self._after(name, turn.update, number)
        return self._starts[key]

    @property
    def moved(self) -> list[str]:
        """The knobs that have a schedule or were ever patched."""
        return sorted({*self.schedules, *self._turns})

    def target(self, name: str) -> object:
        """Where a knob is going: the end of its last turn, or of its schedule."""
        turns, schedule = self._turns.get(name, []), self.schedules.get(name)
        if turns and not turns[-1].released:
            return turns[-1].value
        return self.base[name] if schedule is None else schedule.value(MOST_UPDATES)

    def set(self, update: int) -> dict[str, object]:
        """Give the settings their values at an update; returns those of the knobs in `moved`."""
        values = {name: self.value(name, update) for name in self.moved}
        for name, value in values.items():
            owner, last = owner_of(self._section(name), name)
            setattr(owner, last, value)
        return values
