"""The lowest quality (half accuracy, half bounded loss) on noisy copies of the images, in [−0.5, 1]."""

from torch import Tensor

from synthnet.grpo.scored import Scored

NEEDS_COPIES = True
FLOOR = -0.5


def reward(scored: Scored) -> Tensor:
    return scored.copies.amin(1)
