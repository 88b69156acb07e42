"""What rewards read: whole nets as measured on a minibatch, and what examples made of a net under own draws."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from synthnet.engine import CLASSES, Objective, bounded, counted, quality


@dataclass(frozen=True)
class Seen:
    """What examples made of a net under own draws: outputs [draw example out…], targets [example …], and what judges them."""

    outputs: Tensor
    targets: Tensor
    objective: Objective

    @property
    def right(self) -> Tensor:
        """What each adds to the metric [draw example]: 1 where it is right, of classes."""
        return self.objective.each(self.outputs, self.targets)

    @property
    def loss(self) -> Tensor:
        return self.objective.each_loss(self.outputs, self.targets)

    @property
    def probabilities(self) -> Tensor:
        return self.objective.predictions(self.outputs)


@dataclass(frozen=True)
class Scored:
    """Sequences as measured on one reward minibatch.

    accuracy, loss [R state]: of W0..WK, or of WK alone where no term needs steps; norm [R state]: root mean square
    of the weights in scale units, moved [R step]: of the changes between states. A sequence shorter than the longest
    repeats its last state. n_steps [R]: K. group [R]: which prompt a rollout belongs to. probabilities [R
    example class] of WK, copies [R copy]: quality of WK on noisy images, ill [R]: share of its hidden units that
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
    chance: float = CLASSES.chance

    def take(self, rows: Tensor) -> "Scored":
        """These rollouts alone."""
        kept = {
            each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("n_classes", "chance", "labels")
        }
        return replace(self, **{name: value if value is None else value[rows] for name, value in kept.items()})

    @property
    def finite(self) -> Tensor:
        """[R] whether WK has finite weights and a finite loss."""
        return torch.isfinite(self.loss[:, -1]) & torch.isfinite(self.norm[:, -1])

    def bounded_loss(self) -> Tensor:
        """`bounded` loss of each state [R state]."""
        return bounded(self.loss, self.chance)

    def right(self) -> Tensor:
        """`counted` accuracy of each state [R state]."""
        return counted(self.accuracy, self.loss)

    def quality(self) -> Tensor:
        """`quality` of each state [R state]: what a step is said to have gained."""
        return quality(self.accuracy, self.loss, self.chance)


def join(parts: Sequence[Scored], rows: Sequence[Tensor]) -> Scored:
    """Several measured parts as one, in the order that `rows` [R] give them; shorter sequences repeat their last
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
    return Scored(parts[0].n_classes, labels=parts[0].labels, chance=parts[0].chance, **padded, **rest)
