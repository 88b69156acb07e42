"""Settings of the lab: schedules of hot knobs, where metrics go beside the run directory, and sweeps."""

import math
from dataclasses import dataclass, field

from synthnet.errors import InputError, at_least

SHAPES = ("constant", "linear", "cosine")
SAMPLERS = ("grid", "random", "tpe")
EXECUTORS = ("inline", "processes", "ray", "slurm")


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
    """schedules: hot knob -> its course. tensorboard: event files in the run directory (null: where tensorboard is installed).
    mlflow: a tracking address such as sqlite:///mlflow.db. wandb: offline, online, or null for neither."""

    schedules: dict[str, Schedule] = field(default_factory=dict)
    tensorboard: bool | None = None
    mlflow: str | None = None
    wandb: str | None = None


@dataclass
class WorkersConfig:
    """executor: inline, processes, ray or slurm, or null for this very process; workers: parts at a time; threads: cores of
    each."""

    executor: str | None = None
    workers: int = 2
    threads: int = 1

    def check_workers(self, group: str) -> None:
        """Refuse what no part can run on."""
        if self.executor is not None and self.executor not in EXECUTORS:
            raise InputError(f"{group}.executor must be one of {', '.join(EXECUTORS)}, got {self.executor!r}")
        at_least(1, group, self, "workers", "threads")


@dataclass
class SweepConfig(WorkersConfig):
    """Settings of `synthnet sweep`; its parts are trials.

    sampler: grid (every combination), random or tpe (Optuna's Tree-structured Parzen Estimator); trials: how many of the latter
    two. metric: the validation figure of the last stage whose best value is compared, higher is better. prune: stop trials that
    fall behind (Hyperband).
    """

    executor: str = "processes"
    sampler: str = "grid"
    trials: int = 20
    metric: str = "score"
    prune: bool = False
    seed: int = 0

    def check(self) -> None:
        """Refuse settings that no sweep can run with."""
        if self.sampler not in SAMPLERS:
            raise InputError(f"sweep.sampler must be one of {', '.join(SAMPLERS)}, got {self.sampler!r}")
        self.check_workers("sweep")
        at_least(1, "sweep", self, "trials")


def by_full_name(tree: dict, prefix: str = "") -> dict[str, object]:
    """The leaves of nested settings by full name; an empty group is a leaf."""
    found: dict[str, object] = {}
    for name, value in tree.items():
        found |= by_full_name(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {prefix + name: value}
    return found
