"""Is what a generator makes new? Measures of copying: errors shared with training nets, distance to the nearest one, and
whether that distance is shorter than an honest trainer's.

Protocol: Zeng et al. (arXiv 2506.07998) for error similarity and distances, here with nets balanced, scaled and aligned first,
and with the self-match excluded; Meehan et al. 2020 (arXiv 2004.05675) for the data-copying statistic.
"""

import math
from collections.abc import Callable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from synthnet.nets import Symmetry, canonical

SHORTLIST = 8  # training nets, by a signature that permutations leave alone, that a net of several groups is aligned with


def error_iou(wrong: Tensor, others: Tensor) -> Tensor:
    """Shared errors over all errors [net other], from misclassified examples [net example] and [other example], both bool."""
    a, b = wrong.float(), others.float()
    both = a @ b.T
    return both / (a.sum(1, keepdim=True) + b.sum(1) - both).clamp_min(1)


def highest(values: Tensor, own: Tensor | None = None) -> Tensor:
    """The maximum of each row [net other], leaving out column `own` [net] where a net would meet itself."""
    if own is None:
        return values.amax(1)
    return values.scatter(1, own[:, None], -torch.inf).amax(1)


def nearest_raw(nets: Tensor, training: Tensor, own: Tensor | None = None) -> Tensor:
    """L2 distance [net] to the nearest training net, weights as they are."""
    return -highest(-torch.cdist(nets.double(), training.double()), own)


def nearest_aligned(
    symmetry: Symmetry, nets: Tensor, training: Tensor, own: Tensor | None = None, tick: Callable[[], None] = lambda: None
) -> Tensor:
    """L2 distance [net] to the nearest training net after balancing, scaling to unit norm and alignment, from 0 to 2.

    Exact for one group of units; for several, the nearest of a shortlist of training nets by a permutation-invariant signature,
    each aligned to a fixed point: an upper bound. `tick` is called after each net.
    """
    nets, training = canonical(symmetry, nets), canonical(symmetry, training)
    single = len(symmetry.groups) == 1 and not symmetry.inner
    measure = _one_group(symmetry, training) if single else _shortlisted(symmetry, training)
    found = []
    for number, net in enumerate(nets):
        found.append(measure(net, None if own is None else int(own[number])))
        tick()
    return torch.tensor(found, dtype=torch.float64)


def _one_group(symmetry: Symmetry, training: Tensor) -> Callable[[Tensor, int | None], float]:
    """With one group an alignment is one assignment, and the gains of all training nets are one product."""
    group = next(iter(symmetry.groups))
    rows, rest = symmetry.unit_rows(group, training).float(), symmetry.outside(group)

    def measure(net: Tensor, own: int | None) -> float:
        gains = rows @ symmetry.unit_rows(group, net[None])[0].float().T
        fixed = (training[:, rest] @ net[rest]).float()
        bounds = torch.minimum(gains.amax(2).sum(1), gains.amax(1).sum(1)) + fixed
        best, order = -math.inf, bounds.argsort(descending=True).tolist()
        gains, fixed, bounds = gains.numpy(), fixed.tolist(), bounds.tolist()
        for index in order:
            if bounds[index] <= best:
                break  # no assignment of what is left can be better
            if index != own:
                one, other = linear_sum_assignment(gains[index], maximize=True)
                best = max(best, float(gains[index][one, other].sum()) + fixed[index])
        return max(2 - 2 * best, 0.0) ** 0.5

    return measure


def _shortlisted(symmetry: Symmetry, training: Tensor) -> Callable[[Tensor, int | None], float]:
    signatures = symmetry.signature(training)

    def measure(net: Tensor, own: int | None) -> float:
        apart = (signatures - symmetry.signature(net[None])).norm(dim=1)
        if own is not None:
            apart[own] = torch.inf
        near = apart.topk(min(SHORTLIST, len(training)), largest=False).indices.tolist()
        return min((symmetry.align(net, training[i])[0] - training[i]).norm().item() for i in near)

    return measure


def copying_z(distances: Tensor, honest: Tensor) -> float:
    """The data-copying statistic: the Mann–Whitney z of generated nets' distances to the training nets [net] against those of
    held-out honest nets [net]. About standard normal for an honest generator; far below 0 for one that copies."""
    m, n = len(distances), len(honest)
    both = torch.cat([distances, honest]).double()
    order, counts = both.unique(return_inverse=True, return_counts=True)[1:]
    last = counts.cumsum(0).double()
    ranks = (last - (counts.double() - 1) / 2)[order]
    u = ranks[:m].sum() - m * (m + 1) / 2
    ties = (counts.double() ** 3 - counts).sum() / ((m + n) * (m + n - 1))
    spread = (m * n / 12 * (m + n + 1 - ties)).clamp_min(1e-12).sqrt()
    return ((u - m * n / 2) / spread).item()


def novel_and_performant(
    distances: Tensor, accuracies: Tensor, spread: float, bar: float, factors: tuple[float, ...] = (1, 2, 4, 6)
) -> dict[str, float]:
    """Share of nets at least `factor` spreads from every training net and at least as accurate as the bar, for each factor."""
    return {f"{factor:g}": ((distances >= factor * spread) & (accuracies >= bar)).double().mean().item() for factor in factors}
