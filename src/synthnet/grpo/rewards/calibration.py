"""Minus the expected calibration error, in [−1, 0] (Naeini et al. 2015), over 15 bins of equal mass (Nixon et al. 2019)."""

from torch import Tensor

from synthnet.grpo.scored import Scored

NEEDS_PREDICTIONS = True
FLOOR, BEST = -1.0, 0.0
BINS = 15


def reward(scored: Scored) -> Tensor:
    return -calibration_error(scored.probabilities, scored.labels)


def calibration_error(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Expected calibration error [net] of class probabilities [net example class]: over bins of equally many examples, by
    rising confidence, the mean distance between confidence and accuracy, weighted by the bins' sizes."""
    confidence, predicted = probabilities.double().max(-1)
    confidence, order = confidence.sort(dim=-1, stable=True)
    right = (predicted == labels).double().gather(-1, order)
    parts = zip(confidence.tensor_split(BINS, -1), right.tensor_split(BINS, -1), strict=True)
    gaps = [(c.sum(-1) - r.sum(-1)).abs() for c, r in parts if c.shape[-1]]
    return sum(gaps) / labels.shape[-1]
