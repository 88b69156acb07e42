"""Minus what a sequence loses from step to step, minus the growth of its weights (log of the norm over the start's)."""

import torch
from torch import Tensor

from synthnet.rewards import Scored

NEEDS_STEPS = True


def reward(scored: Scored) -> Tensor:
    quality, norm = scored.quality(), scored.norm.double()
    lost = (quality[:, :-1] - quality[:, 1:]).clamp_min(0).sum(1)
    growth = torch.log(norm[:, -1] / norm[:, 0].clamp_min(1e-12)).clamp_min(0)
    return torch.where(scored.finite, -(lost + growth), -10.0)
