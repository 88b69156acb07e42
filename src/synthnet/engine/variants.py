"""The variants of a task: named numbers, each from a range or a list, that say which of many like tasks a net is for."""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from numbers import Real
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from synthnet.errors import InputError, unknown
from synthnet.nets import metadata_json

LEEWAY = 0.3  # how far beyond its range a number may lie in use, as a share of the range's width
MOST, MOST_TOLD = 64, 1024  # names of a spec; numbers that a policy is told it as


@dataclass(frozen=True)
class Variants:
    """`ranges`: name -> (lowest, highest), or a list of the values that there are. A spec is a number for each name. seen,
    unseen: where not all combinations are meant, those [spec number] that policies train on, and those that test them."""

    ranges: Mapping[str, Sequence[float]]
    seen: Tensor | None = field(default=None, compare=False)
    unseen: Tensor | None = field(default=None, compare=False)

    @classmethod
    def of(cls, given: "Mapping | Variants | None") -> "Variants | None":
        """Raises: InputError for names that are none, empty or reversed ranges, and what is no number."""
        if given is None or isinstance(given, Variants):
            return given
        if not isinstance(given, Mapping) or not 1 <= len(given) <= MOST:
            raise InputError(
                f"a spec is a dict of 1 to {MOST} names and ranges, as in {{'length': (0.25, 1.0)}}, got {given!r:.80}"
            )
        for name, values in given.items():
            if not isinstance(name, str) or not name.isidentifier():
                raise InputError(f"a spec's names are words, as in length, got {name!r:.60}")
            numbers = isinstance(values, tuple | list) and all(map(_is_number, values))
            if not numbers or len(values) < 2 or len(set(values)) < len(values):
                raise InputError(f"spec {name}: expected (lowest, highest) or a list of values, got {values!r:.60}")
            if isinstance(values, tuple) and (len(values) != 2 or values[0] >= values[1]):
                raise InputError(f"spec {name}: expected (lowest, highest), got {values!r:.60}")
        made = cls(dict(given))
        if made.width > MOST_TOLD:
            raise InputError(
                f"a policy is told a spec as at most {MOST_TOLD} numbers, this one takes {made.width}: a flag a value"
            )
        return made

    @classmethod
    def from_json(cls, given: object) -> "Variants":
        """From the metadata of a file. Raises: InputError for anything but what `to_json` gives."""
        if not isinstance(given, dict) or not all(isinstance(each, dict) and len(each) == 1 for each in given.values()):
            raise InputError("its spec is malformed")
        kinds = {"range": tuple, "values": list}
        pairs = {name: next(iter(each.items())) for name, each in given.items()}
        if any(kind not in kinds or not isinstance(values, list) for kind, values in pairs.values()):
            raise InputError("its spec is malformed")
        return cls.of({name: kinds[kind](values) for name, (kind, values) in pairs.items()})

    def to_json(self) -> dict:
        told = {tuple: "range", list: "values"}
        return {name: {told[type(values)]: list(values)} for name, values in self.ranges.items()}

    @property
    def names(self) -> list[str]:
        return list(self.ranges)

    @property
    def shown(self) -> str:
        """Names and ranges in words; names in a row that have one range together."""
        rows = [(ranged, list(names)) for ranged, names in groupby(self.names, self._shown)]
        return ", ".join(
            f"{names[0]} … {names[-1]} {r}" if len(names) > 2 else ", ".join(f"{n} {r}" for n in names) for r, names in rows
        )

    def told(self, spec: Tensor) -> str:
        """A spec [number] as metadata hold it."""
        return json.dumps(dict(zip(self.names, spec.tolist(), strict=True)))

    def of_file(self, path: Path, metadata: Mapping[str, str], told: object) -> Tensor:
        """`spec` as asked, or as a file's metadata say; a refusal names the file."""
        try:
            return self.spec(told or metadata_json(metadata, "synthnet.spec", path))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def draw(self, draws: Sequence[torch.Generator], test: bool = False) -> Tensor:
        """Specs [generator number], float64: each number uniform on its range or list, or one of those that there are; `test`:
        of those that no policy trains on."""
        if (table := self.unseen if test else self.seen) is not None:
            return torch.stack([table[torch.randint(len(table), (1,), generator=draw)[0]] for draw in draws]).double()
        chances = torch.stack([torch.rand(len(self.ranges), generator=draw, dtype=torch.float64) for draw in draws])
        return torch.stack([_placed(chances[:, i], values) for i, values in enumerate(self.ranges.values())], 1)

    @property
    def width(self) -> int:
        """As how many numbers a policy is told a spec."""
        return sum(len(values) if _is_choice(values) else 1 for values in self.ranges.values())

    def scaled(self, spec: Tensor) -> Tensor:
        """Specs [net number] as a policy is told them [net width]: −1 at the lowest value, 1 at the highest; where a list has
        more than two values, a flag for each."""
        return torch.cat([_told(spec[:, i], values) for i, values in enumerate(self.ranges.values())], 1).float()

    def spec(self, told: object) -> Tensor:
        """One spec [1 number] from numbers by name. Raises: InputError where one is missing, unknown, or too far out of its
        range; warns of one beyond it."""
        if told is None:
            raise InputError(f"which variant is this for? Pass a spec, as in --spec NAME=VALUE: {self.shown}")
        if not isinstance(told, Mapping):
            raise InputError(f"a spec is numbers by name ({self.shown}), got {told!r:.60}")
        if wrong := [name for name in told if name not in self.ranges]:
            raise unknown("number of the spec", str(wrong[0]), self.names)
        if missing := [name for name in self.names if name not in told]:
            raise InputError(f"the spec lacks {', '.join(missing)}; it has {self.shown}")
        return torch.tensor([[self._checked(name, told[name]) for name in self.names]], dtype=torch.float64)

    def _checked(self, name: str, value: object) -> float:
        values = self.ranges[name]
        if not _is_number(value):
            raise InputError(f"spec {name} should be a number, got {value!r:.60}")
        low, high = min(values), max(values)
        slack = LEEWAY * (high - low) if isinstance(values, tuple) else 0.0
        if (isinstance(values, list) and value not in values) or not low - slack <= value <= high + slack:
            raise InputError(f"spec {name} should be {self._shown(name)}, got {value:g}")
        if not low <= value <= high:
            warnings.warn(f"spec {name}={value:g} lies beyond {self._shown(name)}, which the policy was shown", stacklevel=4)
        return float(value)

    def _shown(self, name: str) -> str:
        values = self.ranges[name]
        told = [f"{value:g}" for value in values]
        return " to ".join(told) if isinstance(values, tuple) else f"one of {', '.join(told)}"


def _is_number(value: object) -> bool:
    """Whether it is a finite number that a float can hold."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(float(value))
    except OverflowError:
        return False


def _is_choice(values: Sequence[float]) -> bool:
    return isinstance(values, list) and len(values) > 2


def _told(number: Tensor, values: Sequence[float]) -> Tensor:
    """One number of each spec [net] as a policy is told it [net told]."""
    if _is_choice(values):
        away = (number[:, None] - torch.tensor(values, dtype=number.dtype, device=number.device)).abs()
        return F.one_hot(away.argmin(1), len(values))
    low, high = min(values), max(values)
    return ((2 * number - low - high) / (high - low))[:, None]


def _placed(chance: Tensor, values: Sequence[float]) -> Tensor:
    """Uniform numbers in [0, 1) -> on a range, or among a list."""
    if isinstance(values, tuple):
        return values[0] + (values[1] - values[0]) * chance
    return torch.tensor(values, dtype=torch.float64)[(chance * len(values)).long()]
