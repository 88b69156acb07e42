"""Accuracy of the last state, in [0, 1]. Quantised at one over the number of images: alone it ties."""

from torch import Tensor

from synthnet.grpo.scored import Scored, Seen

WEIGHT = 0.5
FLOOR = 0.0


def reward(scored: Scored) -> Tensor:
    return scored.right()[:, -1]


def each(seen: Seen) -> Tensor:
    return seen.right
