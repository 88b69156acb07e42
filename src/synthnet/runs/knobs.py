"""Hot knobs: which settings a run may change while it trains, within which bounds, and their values at each update.

Everything else is cold: it shapes what was built or drawn before the first update. A hot knob's value at an update is a pure
function of the settings, the schedules and the entries of applied.jsonl, so a resumed or replayed run turns them alike.
"""

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from types import NoneType, UnionType

from synthnet.engine.variation import LARGEST_WARP
from synthnet.errors import InputError, unknown
from synthnet.runs.lab import Schedule

LIVE_SECTIONS = {  # what a run of each stage listens to
    "corrupt": ("corrupt", "backbone"),
    "pairs": ("pairs", "backbone"),
    "distil": ("distil", "backbone"),
    "grpo": ("grpo", "reward", "backbone"),
    "critic": ("critic",),
}
STAGES = ("zoo", *LIVE_SECTIONS)  # in the order in which they build on one another
MOST_UPDATES = 1_000_000  # what a patch may be spread over
LONGEST_LIST = 64


@dataclass(frozen=True)
class Bounds:
    """The closed range of a number, or of each number of a list."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


@dataclass
class MixtureKnobs:
    """What a trunk's mixtures of experts read at every forward (`backbone.*`)."""

    temperature: float = 1.0
    balance: float = 0.01
    z: float = 0.001


_COUNT, _WEIGHT, _SHARE, _BIG = Bounds(1, 100_000), Bounds(0, 1e4), Bounds(0, 1), Bounds(1, 1e9)
_OPTIM = {
    "learning_rate": Bounds(1e-9, 1.0),
    "weight_decay": Bounds(0, 1.0),
    "max_grad_norm": Bounds(1e-6, 1e6),
    "ema": Bounds(0, 0.99999),
}
_LOOP = {"validate_every": _BIG, "checkpoint_every": _BIG, "patience": Bounds(0, 1e9)}
_STEPS = Bounds(1, 64)
_PAIRS = {**dict.fromkeys(("single", "short", "long", "skipped"), _WEIGHT), "rollin": _SHARE, "function": _WEIGHT}
_DISTIL = {
    **dict.fromkeys(("anchor", "stay", "apart", "differ", "steady"), _WEIGHT),
    "apart_ratio": Bounds(0, 2),
    "input_noise": Bounds(0, 10),
    "warp": Bounds(0, LARGEST_WARP),
    "steps": _STEPS,
    "graded": _STEPS,
    "nets": _COUNT,
    "images": _COUNT,
    "stop_on_collapse": None,
}
_GRPO = {
    "prompts": _COUNT,
    "num_generations": Bounds(2, 100_000),
    "steps": _STEPS,
    "steps_by": (None, "group", "rollout"),
    "mirrored": None,
    "noisy_steps": ("all", "one", "last"),
    "current_states": _SHARE,
    "sigma": Bounds(1e-5, 10),
    "grouping": ("inter", "process", "intra", "both"),
    "mix": _SHARE,
    "step_rewards": None,
    "discount": _SHARE,
    "scale_rewards": ("group", "batch", "none"),
    "noise_floor": _WEIGHT,
    "loss_type": ("grpo", "bnpo", "dapo", "dr_grpo"),
    "importance_sampling_level": ("token", "sequence", "normalized"),
    "epsilon": Bounds(1e-4, 10),
    "epsilon_high": Bounds(1e-4, 10),
    "delta": Bounds(1, 1e4),
    "beta": _WEIGHT,
    "sync_ref_model": None,
    "ref_model_mixup_alpha": _SHARE,
    "ref_model_sync_steps": _BIG,
    "num_iterations": Bounds(1, 100),
    "target_kl": Bounds(1e-9, 1e4),
    "micro_batches": _COUNT,
    "mixed": None,
    "signal_every": Bounds(0, 1e9),
    "stop_on_collapse": None,
    "guard.kl": Bounds(1e-12, 1e9),
    "guard.norm": Bounds(1e-3, 1e9),
    "guard.drop": Bounds(1e-6, 1e3),
    "guard.action": ("stop", "rollback"),
    "guard.rollbacks": Bounds(0, 1000),
}
_TERMS = ("accuracy", "bounded_loss", "gain", "efficiency", "step_cost", "stability", "robustness", "diversity")
_REWARD = {
    **dict.fromkeys((*_TERMS, "worst_class", "calibration"), Bounds(-1e3, 1e3)),
    "batch": Bounds(2, 10_000_000),
    "input_noise": Bounds(0, 10),
    "warp": Bounds(0, LARGEST_WARP),
    "copies": Bounds(1, 100),
    "copy_noise": Bounds(0, 10),
    "dtype": ("float32", "bfloat16"),
}
_MIXTURE = {"temperature": Bounds(1e-2, 100), "balance": Bounds(0, 10), "z": Bounds(0, 10)}


def _named(prefix: str, limits: Mapping) -> dict:
    return {f"{prefix}.{name}": limit for name, limit in limits.items()}


HOT: dict[str, Bounds | tuple | None] = {
    **{key: limit for stage in LIVE_SECTIONS for key, limit in _named(f"{stage}.optim", _OPTIM).items()},
    **{key: limit for stage in LIVE_SECTIONS for key, limit in _named(f"{stage}.loop", _LOOP).items()},
    **_named("pairs", {**_PAIRS, "batch": _COUNT, "images": _COUNT}),
    **_named("corrupt", {"batch": _COUNT}),
    **_named("distil", _DISTIL),
    **_named("grpo", _GRPO),
    **_named("reward", _REWARD),
    **_named("critic", {"nets": _COUNT, "images": _COUNT}),
    **_named("backbone", _MIXTURE),
}


def check_value(name: str, value: object, sections: Mapping[str, type]) -> object:
    """The value as the knob holds it (an integer becomes a float where the knob is one). `sections`: group -> its dataclass.

    Raises: InputError for an unknown knob (with the nearest), a cold one (with the command that does it), a value of another
    type, one that is not finite, or one out of bounds.
    """
    known = {key for key in HOT if key.partition(".")[0] in sections}
    if not isinstance(name, str) or name not in known:
        if isinstance(name, str) and name in HOT:
            raise InputError(f"{name} is not read by a run of this stage; its hot knobs are those of {', '.join(sections)}")
        if isinstance(name, str) and _hint(name, sections) is not None:
            raise InputError(f"{name} is cold for this run: synthnet fork RUN {name}=VALUE makes a new run with it")
        raise unknown("hot knob", str(name)[:80], known)
    hint, limit = _hint(name, sections), HOT[name]
    kinds = typing.get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if value is None and (NoneType in kinds or (isinstance(limit, tuple) and None in limit)):
        return None
    kind = next(each for each in kinds if each is not NoneType)
    if typing.get_origin(kind) is list:
        if not isinstance(value, list) or not 1 <= len(value) <= LONGEST_LIST:
            raise InputError(f"{name} must be a list of 1 to {LONGEST_LIST} numbers, got {_shown(value)}")
        return [_scalar(name, each, typing.get_args(kind)[0], limit) for each in value]
    return _scalar(name, value, kind, limit)


def _scalar(name: str, value: object, kind: type, limit: Bounds | tuple | None) -> object:
    allowed = {float: (int, float), int: (int,), bool: (bool,), str: (str,)}[kind]
    if not isinstance(value, allowed) or (kind is not bool and isinstance(value, bool)):
        raise InputError(f"{name} must be of type {kind.__name__}, got {_shown(value)}")
    if isinstance(limit, tuple) and value not in limit:
        raise InputError(f"{name} must be one of {', '.join(map(str, limit))}, got {_shown(value)}")
    if isinstance(limit, Bounds) and not (limit.low <= value <= limit.high and math.isfinite(value)):
        raise InputError(f"{name} must lie in {limit}, got {_shown(value)}")
    return kind(value)


def _shown(value: object) -> str:
    return repr(value)[:80]


def _hint(name: str, sections: Mapping[str, type]):
    """The annotated type of a setting by its full name, or None where there is none."""
    group, *path = name.split(".")
    kind = sections.get(group)
    for part in path:
        if not is_dataclass(kind):
            return None
        kind = typing.get_type_hints(kind).get(part)
    return None if is_dataclass(kind) else kind


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
        self.base = {name: self._read(name) for name in HOT if name.partition(".")[0] in sections}
        self.check({name: value for name, value in self.base.items() if value not in (None, [])})  # which leave it to the stage
        self.schedules = dict(schedules)
        for name, schedule in self.schedules.items():
            schedule.check(name)
            for end in (schedule.start, schedule.end):
                check_value(name, end, self.kinds)
            if not isinstance(self.base[name], float):
                raise InputError(f"lab.schedules.{name}: only settings that are numbers with a fraction can follow a schedule")
        self._turns: dict[str, list[_Turn]] = {}
        self._starts: dict[tuple[str, int], object] = {}

    def _owner(self, name: str) -> tuple[object, str]:
        group, *path, last = name.split(".")
        owner = self.sections[group]
        for part in path:
            owner = getattr(owner, part)
        return owner, last

    def _read(self, name: str) -> object:
        owner, last = self._owner(name)
        return getattr(owner, last)

    def check(self, values: Mapping[str, object]) -> dict[str, object]:
        """The values as the knobs hold them. Raises: InputError where `check_value` does."""
        return {name: check_value(name, value, self.kinds) for name, value in values.items()}

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
            owner, last = self._owner(name)
            setattr(owner, last, value)
        return values
