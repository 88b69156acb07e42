"""How differently a net predicts from nets of the update's other start weights: total variation between its class probabilities
and the others' group means, mean over images and groups, in [0, 1]. 0 where there is one group only."""

import torch
from torch import Tensor

from synthnet.grpo.scored import Scored

NEEDS_PREDICTIONS = True
FLOOR = 0.0


def reward(scored: Scored) -> Tensor:
    groups = scored.group.unique()
    probabilities = scored.probabilities.nan_to_num(0.0)
    found = torch.zeros(len(scored.group), dtype=torch.float64)
    for group in groups:
        centre = probabilities[scored.group == group].mean(0)
        distance = 0.5 * (probabilities - centre).abs().sum(-1).mean(-1).double()
        found += torch.where(scored.group == group, 0.0, distance)
    return found / max(len(groups) - 1, 1)
