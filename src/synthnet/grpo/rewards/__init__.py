"""Reward terms: one file each, a function `reward(scored) -> [rollout]`, higher is better; the trainer adds them up by weight.

A file may set NEEDS_STEPS (every state of a sequence is scored, not only the last), NEEDS_PREDICTIONS (class probabilities of
the last states are kept), NEEDS_COPIES (the last states are scored on noisy copies of the images too), NEEDS_HEALTH (dead units
and collapsed layers of the last states are counted) or COUNTS_STEPS (so K is drawn for each rollout, or it could not move an
advantage). A net with non-finite weights or loss gets each term's FLOOR. BEST: the most that a term can give, if not 1.
"""

import importlib
import math
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scored:
    """Sequences as measured on one reward minibatch.

    accuracy, loss [rollout state]: of W0..WK, or of WK alone where no term needs steps; norm [rollout state]: root mean square
    of the weights in scale units, moved [rollout step]: of the changes between states. A sequence shorter than the longest
    repeats its last state. n_steps [rollout]: K. group [rollout]: which prompt a rollout belongs to. probabilities [rollout
    example class] of WK, copies [rollout copy]: quality of WK on noisy images, ill [rollout]: share of its hidden units that
    are dead plus share of its layers that have collapsed; all three None where no term needs them; labels [example].
    """

    n_classes: int
    accuracy: Tensor
    loss: Tensor
    norm: Tensor
    moved: Tensor
    n_steps: Tensor
    group: Tensor
    labels: Tensor
    probabilities: Tensor | None = None
    copies: Tensor | None = None
    ill: Tensor | None = None

    def take(self, rows: Tensor) -> "Scored":
        """These rollouts alone."""
        kept = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("n_classes", "labels")}
        return replace(self, **{name: value if value is None else value[rows] for name, value in kept.items()})

    @property
    def finite(self) -> Tensor:
        """[rollout] whether WK has finite weights and a finite loss."""
        return torch.isfinite(self.loss[:, -1]) & torch.isfinite(self.norm[:, -1])

    def bounded_loss(self) -> Tensor:
        """`bounded` loss of each state [rollout state]."""
        return bounded(self.loss, self.n_classes)

    def right(self) -> Tensor:
        """`counted` accuracy of each state [rollout state]."""
        return counted(self.accuracy, self.loss)

    def quality(self) -> Tensor:
        """`quality` of each state [rollout state]: what a step is said to have gained."""
        return quality(self.accuracy, self.loss, self.n_classes)


def bounded(loss: Tensor, n_classes: int) -> Tensor:
    """1 − min(CE, 2 ln C)/ln C: 1 at perfection, 0 at chance, −1 at worst or not finite."""
    chance = math.log(n_classes)
    return 1 - torch.nan_to_num(loss.double(), nan=2 * chance, posinf=2 * chance).clamp(max=2 * chance) / chance


def counted(accuracy: Tensor, loss: Tensor) -> Tensor:
    """Accuracy, 0 where the loss is not finite."""
    return torch.where(torch.isfinite(loss), accuracy.double(), 0.0)


def quality(accuracy: Tensor, loss: Tensor, n_classes: int) -> Tensor:
    """Half accuracy, half bounded loss."""
    return 0.5 * counted(accuracy, loss) + 0.5 * bounded(loss, n_classes)


def join(parts: Sequence[Scored], rows: Sequence[Tensor]) -> Scored:
    """Several measured parts as one, in the order that `rows` [rollout] give them; shorter sequences repeat their last
    state."""
    longest = max(part.accuracy.shape[1] for part in parts)
    order = torch.cat(list(rows)).argsort()

    def joined(name: str, pad: str = "") -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        if values[0] is None:
            return None
        if pad:
            width = longest - (pad == "zero")
            missing = [width - value.shape[1] for value in values]
            fill = [value[:, -1:] if pad == "last" else torch.zeros(len(value), 1).to(value) for value in values]
            values = [torch.cat([v, f.expand(-1, n)], 1) for v, f, n in zip(values, fill, missing, strict=True)]
        return torch.cat(values)[order]

    padded = {name: joined(name, "last") for name in ("accuracy", "loss", "norm")} | {"moved": joined("moved", "zero")}
    rest = {name: joined(name) for name in ("n_steps", "group", "probabilities", "copies", "ill")}
    return Scored(parts[0].n_classes, labels=parts[0].labels, **padded, **rest)


@lru_cache(maxsize=1)
def terms() -> dict[str, ModuleType]:
    """Term name -> its file."""
    return {module.name: importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)}


def needs(weights: Mapping[str, float], what: str) -> bool:
    """Whether any term with weight sets such a flag: NEEDS_… or COUNTS_STEPS."""
    return any(getattr(terms()[name], what, False) for name, weight in weights.items() if weight)


def total(scored: Scored, weights: Mapping[str, float]) -> tuple[Tensor, dict[str, float]]:
    """The weighted sum [rollout], float64, and the mean of each term that has a weight."""
    found = {}
    for name in (name for name, weight in weights.items() if weight):
        value, floor = terms()[name].reward(scored).double(), getattr(terms()[name], "FLOOR", None)
        found[name] = value if floor is None else torch.where(scored.finite, value, floor)
    reward = torch.zeros(len(scored.accuracy), dtype=torch.float64)
    for name, value in found.items():
        reward = reward + weights[name] * value
    return reward, {f"rewards/{name}": value.mean().item() for name, value in found.items()}
