"""Reward terms: one file each, a function `reward(scored) -> [rollout]`, higher is better; the trainer adds them up by weight.

A file may set NEEDS_STEPS (every state of a sequence is scored, not only the last) or NEEDS_PREDICTIONS (class probabilities of
the last states are kept). A net with non-finite weights or loss gets the floor of every term.
"""

import importlib
import math
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scored:
    """Sequences as measured on one reward minibatch.

    accuracy, loss [rollout state]: of W0..WK, or of WK alone where no term needs steps; norm [rollout state]: root mean square
    of the weights in scale units; probabilities [rollout example class] of WK, or None; labels [example].
    """

    n_classes: int
    accuracy: Tensor
    loss: Tensor
    norm: Tensor
    probabilities: Tensor | None
    labels: Tensor

    @property
    def finite(self) -> Tensor:
        """[rollout] whether WK has a finite loss."""
        return torch.isfinite(self.loss[:, -1])

    def bounded_loss(self) -> Tensor:
        """1 − min(CE, 2 ln C)/ln C of each state [rollout state]: 1 at perfection, 0 at chance, −1 at worst or not finite."""
        chance = math.log(self.n_classes)
        loss = torch.nan_to_num(self.loss.double(), nan=2 * chance, posinf=2 * chance).clamp(max=2 * chance)
        return 1 - loss / chance

    def right(self) -> Tensor:
        """Accuracy of each state [rollout state], 0 where the loss is not finite."""
        return torch.where(torch.isfinite(self.loss), self.accuracy.double(), 0.0)

    def quality(self) -> Tensor:
        """Half accuracy, half bounded loss, of each state [rollout state]: what a step is said to have gained."""
        return 0.5 * self.right() + 0.5 * self.bounded_loss()


@lru_cache(maxsize=1)
def terms() -> dict[str, ModuleType]:
    """Term name -> its file."""
    return {module.name: importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)}


def needs(weights: Mapping[str, float], what: str) -> bool:
    """Whether any term with weight sets NEEDS_STEPS or NEEDS_PREDICTIONS."""
    return any(getattr(terms()[name], what, False) for name, weight in weights.items() if weight)


def total(scored: Scored, weights: Mapping[str, float]) -> tuple[Tensor, dict[str, float]]:
    """The weighted sum [rollout], float64, and the mean of each term that has a weight."""
    found = {name: terms()[name].reward(scored).double() for name, weight in weights.items() if weight}
    return sum(weights[name] * value for name, value in found.items()), {n: v.mean().item() for n, v in found.items()}
