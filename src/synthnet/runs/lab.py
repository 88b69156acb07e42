"""Settings of the lab: schedules of hot knobs, where metrics go beside the run directory, and sweeps."""

import math
from dataclasses import dataclass, field

from synthnet.errors import InputError
from synthnet.runs import executors
from synthnet.settings import COUNT, PATH, options, setting

SHAPES = ("constant", "linear", "cosine")
SAMPLERS = ("grid", "random", "tpe")
EXECUTORS = tuple(options(executors))


@dataclass
class Schedule:
    """The course of one hot knob over updates: from `start` to `end` in `over` updates, beginning at update `begin`; before and
    after, its nearest end. shape: linear, cosine (half a wave: slow, fast, slow) or constant (`start` throughout)."""

    shape: str = "linear"
    start: float = 0.0
    end: float = 0.0
    begin: int = 0
    over: int = 100

    def check(self, name: str) -> None:
        """Raises: InputError for an unknown shape, a value that is not finite, or no updates to run over."""
        if self.shape not in SHAPES:
            raise InputError(f"lab.schedules.{name}.shape must be one of {', '.join(SHAPES)}, got {self.shape!r}")
        if not (math.isfinite(self.start) and math.isfinite(self.end)) or self.over < 1 or self.begin < 0:
            raise InputError(f"lab.schedules.{name} needs finite start and end, over >= 1 and begin >= 0, got {self}")

    def value(self, update: int) -> float:
        """The knob's value at an update (0-based)."""
        if self.shape == "constant":
            return self.start
        progress = min(max((update - self.begin) / self.over, 0.0), 1.0)
        if progress == 1.0:
            return self.end  # exactly: the sum below may end beyond it, and beyond a knob's bounds
        if self.shape == "cosine":
            progress = 0.5 * (1 - math.cos(math.pi * progress))
        return self.start + (self.end - self.start) * progress


@dataclass
class LabConfig:
    """How a run is followed and steered from outside."""

    schedules: dict[str, Schedule] = field(default_factory=dict, metadata={"help": "hot knob -> its course over updates"})
    tensorboard: bool | None = setting(None, "event files in the run directory (null: where tensorboard is installed)")
    mlflow: str | None = setting(None, "a tracking address, as in sqlite:///mlflow.db", unit=PATH)
    wandb: str | None = setting(None, "a Weights & Biases run", choices=(None, "offline", "online"))


@dataclass
class WorkersConfig:
    """Where the parts of a job run."""

    executor: str | None = setting(None, "null: in this very process", choices=(None, *EXECUTORS))
    workers: int = setting(2, "parts at a time", COUNT)
    threads: int = setting(1, "cores of each", COUNT)


@dataclass
class SweepConfig(WorkersConfig):
    """Settings of `synthnet sweep`; its parts are trials."""

    executor: str = setting("processes", "where trials run", choices=EXECUTORS)
    sampler: str = setting("grid", "every combination, or drawn ones (tpe: Optuna's Parzen estimator)", choices=SAMPLERS)
    trials: int = setting(20, "how many of random and tpe", COUNT)
    metric: str = setting("score", "the last stage's validation figure whose best value is compared, higher is better")
    prune: bool = setting(False, "stop trials that fall behind (Hyperband)")
    seed: int = setting(0, "of the draws")


def by_full_name(tree: dict, prefix: str = "") -> dict[str, object]:
    """The leaves of nested settings by full name; an empty group is a leaf."""
    found: dict[str, object] = {}
    for name, value in tree.items():
        found |= by_full_name(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {prefix + name: value}
    return found
