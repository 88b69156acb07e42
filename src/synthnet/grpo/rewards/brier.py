"""Minus the Brier score, in [−2, 0] (Brier 1950): a proper score, so probabilities that are too sure cost."""

from torch import Tensor
from torch.nn.functional import one_hot

from synthnet.grpo.scored import Scored, Seen

NEEDS_PREDICTIONS = True
FLOOR, BEST = -2.0, 0.0


def reward(scored: Scored) -> Tensor:
    return minus_score(scored.probabilities, scored.labels).mean(1)


def each(seen: Seen) -> Tensor:
    return minus_score(seen.probabilities, seen.targets)


def minus_score(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Of each example [net example], from class probabilities [net example class]."""
    return -(probabilities - one_hot(labels, probabilities.shape[-1]).to(probabilities)).square().sum(-1)
