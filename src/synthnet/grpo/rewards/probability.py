"""Probability of the truth, in [0, 1]: a smooth accuracy, which forgives what is hopeless."""

from torch import Tensor

from synthnet.grpo.scored import Scored, Seen

NEEDS_PREDICTIONS = True
FLOOR = 0.0


def reward(scored: Scored) -> Tensor:
    return of_truth(scored.probabilities, scored.labels).mean(1)


def each(seen: Seen) -> Tensor:
    return of_truth(seen.probabilities, seen.targets)


def of_truth(probabilities: Tensor, labels: Tensor) -> Tensor:
    """What [net example class] gives each example's label [net example]."""
    return probabilities.gather(-1, labels.expand(probabilities.shape[:-1]).unsqueeze(-1)).squeeze(-1)
