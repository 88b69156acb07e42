"""Bounded loss of the last state, in [−1, 1]: breaks the ties of accuracy, and lets no outlier rule a group."""

from torch import Tensor

from synthnet.engine import bounded
from synthnet.grpo.scored import Scored, Seen

WEIGHT = 0.5
FLOOR = -1.0


def reward(scored: Scored) -> Tensor:
    return scored.bounded_loss()[:, -1]


def each(seen: Seen) -> Tensor:
    return bounded(seen.loss, seen.objective.chance)
