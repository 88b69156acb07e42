"""Reward functions of the user's own: any callable, given in Python or named in the settings as FILE.py:FUNCTION.

    def reward(*, prompts, completions, trainer_state, log_metric, **columns) -> list[float | None]

As in TRL's `reward_funcs`: keywords only, one number within ±1e12 per rollout, groups in a row, None where it does not
apply. prompts: each rollout's W0 {name: tensor}; completions: each rollout's `Completion`; trainer_state: {"update",
"n_classes"}; log_metric(name, value) writes a number into the metrics; columns: the reward batch's `images` and `labels`.
`async def` is fine.
"""

import asyncio
import inspect
import itertools
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from synthnet.engine import ask_each
from synthnet.errors import InputError, said
from synthnet.nets import load_function, split_name

LARGEST = 1e12  # of a reward: float32 squares of what a group differs by stay finite


@dataclass(frozen=True)
class Completion:
    """One rollout: its last weights {name: tensor}, K, and their accuracy and cross-entropy on the reward batch."""

    weights: dict[str, Tensor]
    n_steps: int
    accuracy: float
    loss: float


@dataclass(frozen=True)
class Hook:
    """A reward function, its weight, and its name in the metrics."""

    function: Callable
    weight: float = 1.0

    def __post_init__(self):
        if not callable(self.function):
            raise InputError(f"a reward function should be callable, got {type(self.function).__name__}")
        if not math.isfinite(self.weight):
            raise InputError(f"the weight of reward function {self.name} must be finite, got {self.weight}")

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)


@dataclass(frozen=True)
class ExampleHook(Hook):
    """A reward function of examples: (outputs [example out…], targets [example …]) -> [example], higher is better."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The rewards [draw example] of outputs [draw example out…]. Raises: InputError for whatever it raises, another shape,
        or numbers that are not finite."""
        what = f"reward function {self.name}"
        found = ask_each(self.function, what, outputs, targets).float()
        if not torch.isfinite(found).all():
            raise InputError(f"{what} gave a number that is not finite")
        return found


def load_hooks(option: str, names: list[str], weights: list[float], kind: type[Hook] = Hook) -> list[Hook]:
    """Hooks from the FILE.py:FUNCTION names of a setting. Raises: InputError where a file or function is missing, or weights do
    not match."""
    if weights and len(weights) != len(names):
        raise InputError(f"{option}_weights has {len(weights)} numbers for {len(names)} functions of {option}")
    hooks = []
    for name, weight in zip(names, weights or [1.0] * len(names), strict=True):
        path, function = split_name(name, option, "FUNCTION")
        hooks.append(kind(load_function(Path(path), function, option), weight))
    return hooks


def ask(hook: Hook, prompts: list, completions: list, state: dict, columns: dict) -> tuple[Tensor, dict[str, float]]:
    """What a hook says of an update's rollouts [rollout], float64, NaN for None; and the metrics that it logged.

    Raises: InputError where the function fails, or gives anything but one finite number or None per rollout.
    """
    logged: dict[str, float] = {}
    note = lambda name, value: logged.__setitem__(f"hook/{name}", float(value))  # noqa: E731
    dtype, autocast, n_rollouts = torch.get_default_dtype(), torch.is_autocast_enabled("cpu"), len(completions)
    folder = Path.cwd()
    lent = {name: value.clone() if isinstance(value, Tensor) else value for name, value in columns.items()}
    try:
        with torch.set_grad_enabled(torch.is_grad_enabled()):  # whatever it switches, the training goes on as it was
            given = hook.function(
                prompts=list(prompts), completions=list(completions), trainer_state=state, log_metric=note, **lent
            )
            if inspect.isawaitable(given):
                given = asyncio.run(_wait(given))
        if isinstance(given, str | bytes | Mapping | Set):
            raise TypeError(f"expected a list of numbers, got a {type(given).__name__}")
        values = [None if value is None else _real(value) for value in itertools.islice(given, n_rollouts + 1)]
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's own code: whatever it raises is the user's to read
        raise InputError(f"reward function {hook.name}: {type(error).__name__}: {said(error)}") from error
    finally:
        torch.set_default_dtype(dtype)
        torch.set_autocast_enabled("cpu", autocast)
        os.chdir(folder)  # run directories are named from here
    if len(values) != n_rollouts:
        expected = f"{n_rollouts} numbers, one per rollout"
        raise InputError(f"reward function {hook.name} should return {expected}, got {len(values)}")
    for value in values:
        if value is not None and not abs(value * hook.weight) <= LARGEST:
            raise InputError(f"reward function {hook.name} gave {value:g}: give a number within ±{LARGEST:g}, or None")
    if all(value is None for value in values):
        warnings.warn(f"reward function {hook.name} gave None for all rollouts of an update", stacklevel=2)
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64), logged


def _real(value: object) -> float:
    if isinstance(value, complex) or getattr(getattr(value, "dtype", None), "is_complex", False):
        raise TypeError(f"expected real numbers, got {value}")
    return float(value)


def ask_all(
    hooks: Sequence[Hook], rollouts: Sequence, accuracies: list, losses: list, state: dict, columns: dict
) -> tuple[Tensor, dict[str, float]]:
    """The weighted sum of what hooks say of an update's rollouts [R], float64, NaN where none applies; and what to log. The
    figures of each rollout's last state are on the reward batch."""
    prompts, completions = [{}] * len(accuracies), [None] * len(accuracies)
    for part in rollouts:
        spec = part.cohort.net.spec
        for row, start, final in zip(part.cohort.rows.tolist(), part.states[0], part.states[-1], strict=True):
            prompts[row] = spec.unflatten(start.clone())  # a copy: what a function does to it stays with it
            completions[row] = Completion(spec.unflatten(final.clone()), part.cohort.n_steps, accuracies[row], losses[row])
    metrics: dict[str, float] = {}
    total = torch.zeros(len(completions), dtype=torch.float64)
    applies = torch.zeros(len(completions), dtype=torch.bool)
    for hook in hooks:
        values, logged = ask(hook, prompts, completions, state, columns)
        metrics |= {**logged, f"rewards/{hook.name}": values.nanmean().item()}
        total, applies = total + hook.weight * values.nan_to_num(0.0), applies | ~values.isnan()
    return torch.where(applies, total, torch.nan), metrics


async def _wait(promise):
    return await promise
