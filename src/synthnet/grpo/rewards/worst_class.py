"""Accuracy of the class that is classified worst, in [0, 1]: it has no useful gradient, so only rewards can raise it."""

import torch
from torch import Tensor

from synthnet.grpo.score import Scored

NEEDS_PREDICTIONS = True
FLOOR = 0.0


def reward(scored: Scored) -> Tensor:
    right = (scored.probabilities.argmax(-1) == scored.labels).double()
    of_class = torch.nn.functional.one_hot(scored.labels, scored.n_classes).double()
    present = of_class.sum(0) > 0
    per_class = (right @ of_class / of_class.sum(0).clamp_min(1))[:, present]
    return per_class.amin(1)
