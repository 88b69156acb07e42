"""Settings: what one is for, its bounds, its unit, and whether a live run can change it, said once, on the dataclass field.

A config group is a dataclass whose fields are made by `setting`. The table of knobs, docs/knobs.md, the bounds that are checked
before any work and those that a live run holds a patch against all come from there.
"""

import importlib
import math
import pkgutil
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import lru_cache
from types import ModuleType, NoneType, UnionType
from typing import Any

from synthnet.errors import InputError, unknown

LONGEST_LIST = 64
COUNT, SHARE, WEIGHT, OFTEN = (1, 100_000), (0, 1), (0, 1e4), (1, 1e9)  # bounds that many settings have


PATH = "a path"  # the unit of settings whose text is taken as it stands


def setting(
    default: Any, help: str, bounds: tuple | None = None, *, choices: tuple = (), unit: str = "", hot: bool = False
) -> Any:
    """A dataclass field. `bounds`: the closed range of a number, or of each number of a list; `choices`: the values that it may
    have; `unit`: of the number; `hot`: a live run may change it."""
    told = {"help": help, "bounds": bounds, "choices": choices, "unit": unit, "hot": hot}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=told)
    return field(default=default, metadata=told)


@dataclass(frozen=True)
class Knob:
    """One setting by its full name, as its field says."""

    name: str
    kind: object
    default: object
    help: str = ""
    bounds: tuple | None = None
    choices: tuple = ()
    unit: str = ""
    hot: bool = False

    @property
    def plain(self) -> type:
        """Its type, without None."""
        kinds = typing.get_args(self.kind) if isinstance(self.kind, UnionType) else (self.kind,)
        return next(each for each in kinds if each is not NoneType)

    @property
    def optional(self) -> bool:
        return None in self.choices or (isinstance(self.kind, UnionType) and NoneType in typing.get_args(self.kind))

    @property
    def allowed(self) -> str:
        """Its bounds or choices in words."""
        if self.choices:
            return ", ".join("null" if choice is None else str(choice) for choice in self.choices)
        if self.bounds:
            return f"{self.bounds[0]:g} to {self.bounds[1]:g}"
        return "true, false" if self.plain is bool else ""

    def check(self, value: object) -> object:
        """The value as the setting holds it (an integer becomes a float where it is one).

        Raises: InputError for a value of another type, one that is not finite, or one out of bounds.
        """
        if value is None and self.optional:
            return None
        if typing.get_origin(self.plain) is not list:
            return self._scalar(value, self.plain)
        if not isinstance(value, list) or not 1 <= len(value) <= LONGEST_LIST:
            raise InputError(f"{self.name} must be a list of 1 to {LONGEST_LIST} numbers, got {_shown(value)}")
        return [self._scalar(each, typing.get_args(self.plain)[0]) for each in value]

    def _scalar(self, value: Any, kind: type) -> object:
        fitting = {float: (int, float), int: (int,), bool: (bool,), str: (str,)}[kind]
        if not isinstance(value, fitting) or (kind is not bool and isinstance(value, bool)):
            raise InputError(f"{self.name} must be of type {kind.__name__}, got {_shown(value)}")
        if self.choices and value not in self.choices:
            raise InputError(f"{self.name} must be one of {self.allowed}, got {_shown(value)}")
        if self.bounds and not (self.bounds[0] <= value <= self.bounds[1] and math.isfinite(float(value))):
            raise InputError(f"{self.name} must lie in {self.allowed}, got {_shown(value)}")
        return kind(value)


def _shown(value: object) -> str:
    return repr(value)[:80]


@lru_cache(maxsize=256)
def knobs_of(group: str, kind: type) -> Mapping[str, Knob]:
    """Full name -> knob of every setting of a config group, nested groups included, in order."""
    return _knobs(group, kind, None)


def _knobs(group: str, kind: type, made: object) -> dict[str, Knob]:
    found: dict[str, Knob] = {}
    hints = typing.get_type_hints(kind)
    for each in fields(kind):
        default = getattr(made, each.name) if made is not None else each.default
        if made is None and each.default is MISSING:
            default = each.default_factory() if each.default_factory is not MISSING else None
        if is_dataclass(hints[each.name]):
            found |= _knobs(f"{group}.{each.name}", hints[each.name], default)
        else:
            name = f"{group}.{each.name}" if group else each.name
            found[name] = Knob(name, hints[each.name], default, **each.metadata)
    return found


def hot_knobs(sections: Mapping[str, type]) -> dict[str, Knob]:
    """Full name -> knob of all that a live run with these config groups can change."""
    found = [knob for group, kind in sections.items() for knob in knobs_of(group, kind).values() if knob.hot]
    return {knob.name: knob for knob in found}


def hot_value(name: object, value: object, sections: Mapping[str, type]) -> object:
    """A value that a hot knob of a run with these config groups is to have, checked.

    Raises: InputError for an unknown knob (with the nearest), a cold one (with the command that does it), or a value that it
    cannot have.
    """
    known = hot_knobs(sections)
    if isinstance(name, str) and name in known:
        return known[name].check(value)
    group, near = str(name).partition(".")[0], unknown("hot knob", str(name)[:80], known)
    if group in sections and name in knobs_of(group, sections[group]):
        raise InputError(f"{name} is cold for this run: synthnet fork RUN {name}=VALUE makes a new run with it")
    if group not in sections and "." in str(name):
        raise InputError(f"{near}; {group}.… is not read by a run of this stage, but {', '.join(sections)}")
    raise near


def owner_of(section: object, name: str) -> tuple[object, str]:
    """The object that holds a setting, and its name there, from the full name."""
    _, *path, last = name.split(".")
    for part in path:
        section = getattr(section, part)
    return section, last


def read_value(section: object, name: str) -> object:
    owner, last = owner_of(section, name)
    return getattr(owner, last)


def check_settings(group: str, section: object) -> None:
    """Refuse, before any work, values of a config group that lie out of their bounds. Raises: InputError, by full name."""
    kind: Any = type(section)
    for name, knob in knobs_of(group, kind).items():
        value = read_value(section, name)
        if (knob.bounds or knob.choices) and (value != [] or knob.default != []):
            knob.check(value)


def options(package: ModuleType) -> list[str]:
    """The names of the plug-ins of a package: its public files."""
    return sorted(each.name for each in pkgutil.iter_modules(package.__path__) if not each.name.startswith("_"))


def option(package: ModuleType, name: str, kind: str) -> ModuleType:
    """A plug-in by name. Raises: InputError, with the nearest, where there is no such file."""
    if name not in options(package):
        raise unknown(kind, str(name), options(package))
    return importlib.import_module(f"{package.__name__}.{name}")
