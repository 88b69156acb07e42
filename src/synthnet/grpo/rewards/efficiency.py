"""Mean quality over the steps of a sequence: the earlier a net is good, the more."""

import torch
from torch import Tensor

from synthnet.grpo.scored import Scored

NEEDS_STEPS = COUNTS_STEPS = True
FLOOR = -0.5


def reward(scored: Scored) -> Tensor:
    quality = scored.quality()[:, 1:]
    taken = torch.arange(quality.shape[1]) < scored.n_steps[:, None]
    return (quality * taken).sum(1) / scored.n_steps
