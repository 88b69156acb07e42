"""Accuracy of the class that is classified worst, in [0, 1]: it has no useful gradient, so only rewards can raise it."""

import torch
from torch import Tensor

from synthnet.grpo.scored import Scored, Seen

NEEDS_PREDICTIONS = True
FLOOR = 0.0
SOFT = 0.05  # by example: how much less accurate a class has to be to count e times as much


def reward(scored: Scored) -> Tensor:
    right = (scored.probabilities.argmax(-1) == scored.labels).double()
    of_class = torch.nn.functional.one_hot(scored.labels, scored.n_classes).double()
    present = of_class.sum(0) > 0
    per_class = (right @ of_class / of_class.sum(0).clamp_min(1))[:, present]
    return per_class.amin(1)


def each(seen: Seen) -> Tensor:
    """Right or wrong, weighted by class: the more, the worse a class is on this minibatch, however rare it is."""
    right = seen.right
    of_class = torch.nn.functional.one_hot(seen.targets, seen.outputs.shape[-1]).double()
    share = of_class.mean(0)
    accuracy = (right.mean(0) @ of_class) / of_class.sum(0).clamp_min(1)
    weight = torch.softmax(torch.where(share > 0, -accuracy / SOFT, -torch.inf), 0) / share.clamp_min(1e-9)
    return right * (of_class @ weight)
