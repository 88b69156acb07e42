"""Reward functions of the user's own: any callable, given in Python or named in the settings as FILE.py:FUNCTION.

    def reward(*, prompts, completions, trainer_state, log_metric, **columns) -> list[float | None]

As in TRL's `reward_funcs`: keywords only, one number per rollout, groups in a row, None where the function does not apply.
prompts: each rollout's W0 {name: tensor}; completions: each rollout's `Completion`; trainer_state: {"update", "n_classes"};
log_metric(name, value) writes a number into the metrics; columns: the reward batch's `images` and `labels`. `async def` is
fine.
"""

import asyncio
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from synthnet.errors import InputError
from synthnet.functional import Network
from synthnet.rewards import Scored
from synthnet.user_code import load_function


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

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)


def load_hooks(names: list[str], weights: list[float]) -> list[Hook]:
    """Hooks from FILE.py:FUNCTION names. Raises: InputError where a file or function is missing, or weights do not match."""
    if weights and len(weights) != len(names):
        raise InputError(f"reward.python_weights has {len(weights)} numbers for {len(names)} functions of reward.python")
    hooks = []
    for name, weight in zip(names, weights or [1.0] * len(names), strict=True):
        path, _, function = name.rpartition(":")
        if not path.endswith(".py") or not function.isidentifier():
            raise InputError(f"reward.python expects FILE.py:FUNCTION, got {name!r}")
        hooks.append(Hook(load_function(Path(path), function, "reward.python"), weight))
    return hooks


def ask(hook: Hook, net: Network, prompts: Tensor, finals: Tensor, scored: Scored, state: dict, columns: dict) -> tuple:
    """What a hook says [rollout], float64, NaN for None; and the metrics that it logged. W0 and WK are [rollout weights].

    Raises: InputError for a wrong number of values.
    """
    logged: dict[str, float] = {}
    completions = [
        Completion(_named(net, weights), int(k), a.item(), b.item())
        for weights, k, a, b in zip(finals, scored.n_steps, scored.accuracy[:, -1], scored.loss[:, -1], strict=True)
    ]
    given = hook.function(
        prompts=[_named(net, weights) for weights in prompts],
        completions=completions,
        trainer_state=state,
        log_metric=lambda name, value: logged.__setitem__(f"hook/{name}", float(value)),
        **columns,
    )
    if inspect.isawaitable(given):
        given = asyncio.run(_wait(given))
    values = [math.nan if value is None else float(value) for value in given]
    if len(values) != len(finals):
        raise InputError(f"reward function {hook.name} should return {len(finals)} numbers, one per rollout, got {len(values)}")
    return torch.tensor(values, dtype=torch.float64), logged


async def _wait(promise):
    return await promise


def _named(net: Network, flat: Tensor) -> dict[str, Tensor]:
    return {name: value[0] for name, value in net.spec.unflatten(flat[None]).items()}
