"""What nets of a task are trained down and judged by: a loss and a metric of each example, for many nets at once."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from synthnet.errors import InputError
from synthnet.nets import asked

Measure = Callable[[Tensor, Tensor], Tensor]  # outputs [example out…], targets [example …] -> [example]


def _columns(logits: Tensor) -> Tensor:
    """[… example class] -> [… class example] in memory: reductions over a few classes are then vectorised over examples,
    fifty times faster on the CPU than along the last axis."""
    return logits.transpose(-1, -2).contiguous()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy per net [net], in nats. Labels: class ids [(net) example], or probabilities [(net) example class]."""
    log_probs = F.log_softmax(_columns(logits), dim=-2)
    if labels.is_floating_point():
        return -(log_probs * labels.transpose(-1, -2)).sum(-2).mean(-1)
    picked = log_probs.gather(-2, labels.expand(logits.shape[:-1]).unsqueeze(-2)).squeeze(-2)
    return -picked.mean(-1)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of correct predictions per net [net], in [0, 1], float64. Among equal logits the first class is the prediction."""
    columns, n_classes = _columns(logits), logits.shape[-1]
    places = torch.arange(n_classes, 0, -1, dtype=torch.int16, device=logits.device).unsqueeze(-1)
    first = ((columns == columns.amax(-2, keepdim=True)) * places).amax(-2)  # n_classes for class 0, down to 1; 0 for NaN
    return (first == n_classes - labels).double().mean(-1)


@dataclass(frozen=True)
class Objective:
    """Cross-entropy and accuracy where nothing else is given: `loss` and `metric` of outputs and targets, for each example.

    `kind`: classes, whose targets are ids and whose outputs are logits; numbers, whose targets are standardised; own, where
    only `loss` and `metric` know. chance: the loss of a net that has learnt nothing.
    """

    kind: str = "classes"
    name: str = "accuracy"
    loss: Measure | None = None
    metric: Measure | None = None
    chance: float = math.log(10)

    @cached_property
    def plain(self) -> bool:
        """Whether it is cross-entropy and accuracy, of which fast forms are known."""
        return self.kind == "classes" and self.loss is None and self.metric is None

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of each net [net], with a gradient; outputs [net example out…], targets shared or [net example …].

        Raises: InputError where a loss of the user's own gives another shape or NaN.
        """
        if self.loss is None and self.kind == "classes":
            return cross_entropy(outputs, targets)
        return self.each_loss(outputs, targets).mean(-1)

    def each_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each example [net example]; as `losses`."""
        if self.loss is not None:
            found = ask_each(self.loss, "the task's loss", outputs, targets)
            if outputs.requires_grad and not found.requires_grad:
                raise InputError("the task's loss has no gradient with respect to outputs: nets cannot be trained down it")
            return found
        if self.kind == "classes":
            return F.cross_entropy(outputs.movedim(-1, 1), targets.expand(outputs.shape[:2]), reduction="none")
        return _of_numbers(outputs, targets)[2]

    def each(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What each example adds to the metric [net example], float64: its mean over examples is the metric. Of r2, targets
        are all of a split, since what they vary by is read off them."""
        if self.metric is not None:
            return ask_each(self.metric, "the task's metric", outputs, targets).double()
        if self.kind == "classes":
            return (outputs.argmax(-1) == targets).double()
        if self.kind == "own":
            return -ask_each(self.loss, "the task's loss", outputs, targets).double()
        _, targets, squares = _of_numbers(outputs, targets)
        spread = (targets - targets.mean(-2, keepdim=True)).square().mean((-2, -1), keepdim=True)
        return 1 - (squares.double() / spread[..., 0])

    def metrics(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The metric of each net [net], float64."""
        return accuracy(outputs, targets) if self.plain else self.each(outputs, targets).mean(-1)

    def ranked(self, metric: float, loss: float) -> float:
        """Metric less a tenth of the loss, which breaks ties. A loss above that of guessing counts as guessing: nets that have
        learnt something and are too sure of it are better than nets that know nothing."""
        return metric - 0.1 * min(loss, self.chance)

    def predictions(self, outputs: Tensor) -> Tensor:
        """What a net says of each example: class probabilities, or its outputs as they are."""
        return outputs.softmax(-1) if self.kind == "classes" else outputs


def ask_each(function: Measure, what: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """What a function of the user's own gives for all nets' examples end to end [net example]; `what`: how messages call it.
    Raises: InputError for another shape, or NaN for outputs that have none."""
    n_nets, n_examples = outputs.shape[:2]
    own = targets.ndim == (3 if targets.is_floating_point() else 2)  # labels are [example], numbers [example out]
    spread = targets.flatten(0, 1) if own else targets.repeat(n_nets, *(1,) * (targets.ndim - 1))
    found = asked(what, function, outputs.flatten(0, 1), spread)
    if not isinstance(found, Tensor) or found.shape != (n_nets * n_examples,):
        came = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InputError(
            f"{what} should give one number for each example [{n_nets * n_examples}], got {came}: "
            "no mean over examples, as in reduction='none'"
        )
    if torch.isnan(found).any() and not torch.isnan(outputs).any():
        raise InputError(f"{what} gave NaN for outputs that have none")
    return (found if found.is_floating_point() else found.float()).view(n_nets, n_examples)


CLASSES = Objective()


def _of_numbers(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs and targets of one shape [… example out], and the squared error of each example, mean over outputs."""
    if targets.ndim < outputs.ndim and outputs.shape[-1] == 1 and targets.shape[-1] != 1:
        targets = targets.unsqueeze(-1)
    targets = targets.to(outputs)
    return outputs, targets, (outputs - targets).square().flatten(2).mean(2)
