"""Minus what a sequence loses from step to step, the growth of its weights, jumps beyond `LONGEST` and ill parts of its last
net.

Growth is the log of the norm over the start's; a jump is the root mean square change of one step in scale units; ill are hidden
units that no image excites and layers whose weights have all but vanished.
"""

import torch
from torch import Tensor

from synthnet.grpo.scored import Scored

NEEDS_STEPS = NEEDS_HEALTH = True
LONGEST = 2.0
BEST = 0.0
FLOOR = -10.0


def reward(scored: Scored) -> Tensor:
    quality, norm = scored.quality(), scored.norm.double()
    lost = (quality[:, :-1] - quality[:, 1:]).clamp_min(0).sum(1)
    growth = torch.log(norm[:, -1] / norm[:, 0].clamp_min(1e-12)).clamp_min(0)
    jumps = (scored.moved.double() - LONGEST).clamp_min(0).sum(1)
    total = -(lost + growth + jumps + scored.ill.double())
    return total.nan_to_num(FLOOR, neginf=FLOOR).clamp_min(FLOOR)
