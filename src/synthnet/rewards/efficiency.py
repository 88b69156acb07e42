"""Mean quality over the steps of a sequence: the earlier a net is good, the more."""

from torch import Tensor

from synthnet.rewards import Scored

NEEDS_STEPS = True


def reward(scored: Scored) -> Tensor:
    return scored.quality()[:, 1:].mean(1)
