"""Do outputs of different seeds differ as much as conventionally trained nets of different seeds do?

Takes weights and predictions, never data. Raw distances mislead: they miss permuted copies, and rescaling ReLU units
inflates them. So nets are balanced, aligned (Hungarian, to a fixed point) and scaled to unit norm first. Everything is
reported as a ratio to conventionally trained nets of different seeds on the same measure.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from synthnet.nets.symmetry import Symmetry
from synthnet.seeds import generator

ENSEMBLE_SIZE = 16
ENSEMBLE_DRAWS = 50
ACCURACY_MARGIN = 0.003


def canonical(symmetry: Symmetry, flat: Tensor) -> Tensor:
    """Weights [net weights], balanced and scaled to unit norm."""
    balanced = symmetry.balance(flat.double().cpu())
    return balanced / balanced.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def pair_distances(symmetry: Symmetry, flat: Tensor, n_pairs: int = 64, seed: int = 0) -> Tensor:
    """L2 distances [pair] between random pairs of the nets [net weights] after balancing, unit norm and alignment."""
    nets = canonical(symmetry, flat)
    draw, found = generator(seed, "identity-pairs"), []
    for _ in range(n_pairs):
        i, j = torch.randperm(len(nets), generator=draw)[:2].tolist()
        found.append((symmetry.align(nets[i], nets[j])[0] - nets[j]).norm())
    return torch.stack(found)


def aligned_distance(symmetry: Symmetry, flat: Tensor, n_pairs: int = 64, seed: int = 0) -> float:
    """The mean of `pair_distances`."""
    return pair_distances(symmetry, flat, n_pairs, seed).mean().item()


def shortfall(symmetry: Symmetry, nets: Tensor, wanted: float) -> Tensor:
    """How much too near to each other nets of different seeds [net weights] lie, with a gradient: the mean over neighbours (0
    and 1, 2 and 3 …) of (1 − distance / wanted)², 0 where the distance is at least `wanted`. Distances as in `pair_distances`;
    the alignment is held fixed."""
    flat = canonical(symmetry, nets)
    found = []
    for one, other in zip(flat[:-1:2], flat[1::2], strict=True):
        permutations = symmetry.align(one.detach(), other.detach())[1]
        found.append((symmetry.permute(one, permutations) - other).norm())
    return _lack(torch.stack(found), wanted).to(nets)


def prediction_shortfall(probabilities: Tensor, references: Tensor, ratio: float) -> Tensor:
    """How much too alike nets of different seeds predict, with a gradient: the mean over neighbours (0 and 1, 2 and 3 …) of
    (1 − distance / wanted)², 0 where the distance is at least `wanted`, which is `ratio` times the references' mean distance.
    Distance: total variation between class probabilities, mean over examples. Both [net example class]."""
    return _lack(_neighbour_variation(probabilities), ratio * _neighbour_variation(references).mean())


def _lack(distances: Tensor, wanted: float | Tensor) -> Tensor:
    return (1 - distances / wanted).clamp_min(0).square().mean()


def _neighbour_variation(probabilities: Tensor) -> Tensor:
    even = len(probabilities) // 2 * 2
    return 0.5 * (probabilities[:even:2] - probabilities[1:even:2]).abs().sum(-1).mean(-1)


def spread(outputs: Tensor) -> float:
    """Root mean square difference between the outputs [net example out…] of two different nets, over all pairs."""
    return (2 * outputs.double().var(0).mean()).sqrt().item()


def disagreement(probabilities: Tensor) -> float:
    """Share of examples on which two different nets predict different classes, over all pairs, in [0, 1].

    Takes class probabilities [net example class].
    """
    predicted = probabilities.argmax(-1)
    n_nets = len(predicted)
    counts = torch.nn.functional.one_hot(predicted, probabilities.shape[-1]).sum(0).double()
    agreeing = (counts * (counts - 1)).sum(-1) / (n_nets * (n_nets - 1))
    return 1 - agreeing.mean().item()


Judge = Callable[[Tensor], Tensor]  # predictions [net example out…] -> metric [net]


def right(labels: Tensor) -> Judge:
    """The accuracy of class probabilities [net example class]."""
    return lambda probabilities: (probabilities.argmax(-1) == labels).double().mean(-1)


def ensemble_gain(probabilities: Tensor, judge: Judge, seed: int = 0) -> float:
    """Metric of the mean prediction of 16 nets minus the mean metric of its members, mean of 50 draws."""
    draw = generator(seed, "ensembles")
    size = min(ENSEMBLE_SIZE, len(probabilities))
    gains = []
    for _ in range(ENSEMBLE_DRAWS):
        members = probabilities[torch.randperm(len(probabilities), generator=draw)[:size]]
        gains.append(judge(members.mean(0, keepdim=True))[0] - judge(members).mean())
    return torch.stack(gains).mean().item()


def own_twin_rank(start: Tensor, outputs: Tensor, twins: Tensor) -> dict[str, float]:
    """A diagnostic: how often the own twin's displacement W − W0 is the one nearest (by cosine) to the output's own.

    Raw distance would be no evidence: start weights are nearest to their own twin already. All inputs [net weights].
    """
    moved = torch.nn.functional.normalize(outputs - start, dim=-1)
    trained = torch.nn.functional.normalize(twins - start, dim=-1)
    cosine = moved @ trained.T
    n_nets = len(cosine)
    own = cosine.diagonal()
    rank = (cosine > own[:, None]).sum(1) + 1
    others = (cosine.sum() - own.sum()) / max(n_nets * (n_nets - 1), 1)
    return {
        "own_twin_first": (rank == 1).double().mean().item(),
        "own_twin_mean_rank": rank.double().mean().item(),
        "cosine_own": own.mean().item(),
        "cosine_others": others.item(),
    }


def identity_report(
    symmetry: Symmetry,
    outputs: Tensor,
    references: Tensor,
    output_probs: Tensor,
    reference_probs: Tensor,
    judge: Judge,
    classes: bool = True,
) -> dict:
    """The identity measures of outputs [net weights] as ratios to conventionally trained references of different seeds; where
    predictions are no classes, nets disagree by the root mean square of their differences.

    Disagreement and ensemble gain count only where the mean accuracy is within 0.3 points of the references': bad nets
    disagree a lot. `functional_counts` says whether they do.
    """
    accuracy = [judge(probs).mean().item() for probs in (output_probs, reference_probs)]
    differ = disagreement if classes else spread
    values = {
        "aligned_distance": (aligned_distance(symmetry, outputs), aligned_distance(symmetry, references)),
        "disagreement": (differ(output_probs), differ(reference_probs)),
        "ensemble_gain": (ensemble_gain(output_probs, judge), ensemble_gain(reference_probs, judge)),
    }
    report = {name: {"value": a, "reference": b, "ratio": a / b if b else None} for name, (a, b) in values.items()}
    return {**report, "functional_counts": accuracy[0] >= accuracy[1] - ACCURACY_MARGIN}
