"""The space of a sweep: what each setting may be, in Hydra's grammar."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from synthnet.config import parse, plain_path
from synthnet.errors import InputError


@dataclass(frozen=True)
class Axis:
    """What one setting may be: one of `choices`, or a number between `low` and `high`."""

    choices: tuple = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @property
    def first(self) -> object:
        return self.choices[0] if self.choices else self.low

    def suggest(self, trial, name: str) -> object:
        if self.choices:
            return json.loads(trial.suggest_categorical(name, [json.dumps(choice) for choice in self.choices]))
        return trial.suggest_float(name, self.low, self.high, log=self.log)


def _once(values: Iterable) -> tuple:
    """Each value once: the same one twice would train the same trial twice."""
    return tuple({json.dumps(value): value for value in values}.values())


def parse_space(settings: list[str]) -> tuple[dict[str, Axis], dict[str, object]]:
    """The swept settings and the fixed ones, in Hydra's grammar: a=1,2,3  a=choice(1,2)  a=range(1,9,2)  a=interval(0.1,0.5)
    a=tag(log,interval(1e-5,1e-3)).

    Raises: InputError for what is none of these.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import IntervalSweep, QuotedString
    from hydra.errors import HydraException

    space, fixed = {}, []
    for text in settings:
        if plain_path(text):
            fixed.append(text)
            continue
        try:
            override = OverridesParser.create().parse_override(text)
            value = override.value()
            swept = override.is_sweep_override() and not isinstance(value, IntervalSweep)
            plain = list(override.sweep_iterator(lambda x: x)) if swept else []
        except (HydraException, ValueError, TypeError) as error:
            raise InputError(f"expected KEY=VALUE or KEY=VALUE,VALUE…, got {text!r}: {str(error)[:80]}") from error
        if not override.is_sweep_override():
            fixed.append(text)
            continue
        if isinstance(value, IntervalSweep):
            low, high, log = float(value.start), float(value.end), "log" in value.tags
            if not low < high or (log and low <= 0):
                raise InputError(f"{text}: an interval runs from a smaller number to a larger one, on a log scale above 0")
            space[override.key_or_group] = Axis((), low, high, log)
            continue
        if not plain:
            raise InputError(f"{text} has no values")
        space[override.key_or_group] = Axis(_once(each.text if isinstance(each, QuotedString) else each for each in plain))
    return space, parse(fixed)
