"""Minus the number of steps taken: with K drawn for each rollout, a step has to be worth its cost."""

from torch import Tensor

from synthnet.grpo.scored import Scored

COUNTS_STEPS = True
BEST = -1.0


def reward(scored: Scored) -> Tensor:
    return -scored.n_steps.double()
