"""The audit: does a generator make new, different, working nets, or does it copy? One set of measures for outputs and controls.

Outputs grow from the starts of the zoo's held-out runs, so each has its conventionally trained twin. Every measure is explained
in docs/metrics.md, with what fools it.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from synthnet.audit import checkpoints
from synthnet.audit.basins import basins
from synthnet.audit.connectivity import PAIRS, barrier, neighbours, path_losses
from synthnet.audit.ddpm import Ddpm, DdpmConfig
from synthnet.audit.evaluation import summary
from synthnet.audit.measures import Field, Measured
from synthnet.audit.novelty import error_iou
from synthnet.audit.sequence import compare_sequences
from synthnet.engine import score
from synthnet.nets import disagreement as disagreement_of
from synthnet.nets import ensemble_gain, init_scale, own_twin_rank, pair_distances, right
from synthnet.seeds import generator

CONTROL_NETS = 100  # of each control, as in the published protocol
NOISES = (0.05, 0.1)
OURS, HONEST, TRAINING = "outputs", "held-out SGD nets", "training nets"


class Source(NamedTuple):
    """Where a set of nets [net weights] comes from, made when it is asked for; `own` [net]: which training net each of them is,
    if they are the zoo's."""

    make: Callable[[], Tensor]
    own: Tensor | None = None


def sources(field: Field, outputs: Callable[[], Tensor], others: Mapping[str, Source]) -> dict[str, Source]:
    """Name -> source of all sets that a report compares: outputs, SGD nets, and the controls."""
    first = torch.arange(min(CONTROL_NETS, len(field.training)))
    ours = {OURS: Source(outputs), HONEST: Source(lambda: field.twins), TRAINING: Source(lambda: field.training[first], first)}
    return ours | dict(others)


def controls(field: Field, seed: int = 0, n: int = CONTROL_NETS, ddpm: DdpmConfig | None = None) -> dict[str, Source]:
    """Name -> source of every control that needs no policy."""
    symmetry, training, scale = field.network.alignment, field.training, init_scale(field.network.spec)
    draw = lambda name: generator(seed, f"audit-{name}")  # noqa: E731
    n = min(n, len(field.starts))

    def best() -> Tensor:
        return training[score(field.network, training[:256], *field.task.examples("val"))[0].argmax()]

    made = {
        "start weights": lambda: field.starts[:n],
        "training net, copied": lambda: checkpoints.copies(training, n, draw("copies")),
        "nearest start's training net": lambda: checkpoints.retrieved(training, field.training_starts, field.starts[:n]),
        "training net, permuted": lambda: checkpoints.permuted(training, n, draw("permuted"), symmetry),
        **{
            f"training net + noise {x}": lambda x=x: checkpoints.noisy(training, n, draw(f"noise-{x}"), scale, x)
            for x in NOISES
        },
        "average of 16": lambda: checkpoints.averages(training, n, draw("averages")),
        "per-coordinate Gaussian": lambda: checkpoints.gaussian(training, n, draw("gaussian")),
        "aligned interpolation": lambda: checkpoints.interpolations(training, n, draw("interpolations"), symmetry),
        "aligned soup of 16": lambda: checkpoints.soups(training, n, draw("soups"), symmetry),
        "constant net": lambda: checkpoints.constant(best(), n),
    }
    if ddpm is not None:
        made["DDPM"] = lambda: Ddpm(training, ddpm, seed).sample(n, seed)
    return {name: Source(make) for name, make in made.items()}


def seed_identity(field: Field, nets: Measured, twins: Measured) -> dict:
    """Do outputs of different seeds differ as SGD nets do, and which twin does each point to? Ratios to the twins' own
    figures."""
    symmetry, own = field.network.alignment, {}
    for name, part in (("outputs", nets), ("twins", twins)):
        wrong = part.probabilities.argmax(-1) != field.labels
        iou = error_iou(wrong, wrong)
        own[name] = {
            "aligned_distance": pair_distances(symmetry, part.weights),
            "disagreement": disagreement_of(part.probabilities),
            "ensemble_gain": ensemble_gain(part.probabilities, right(field.labels)),
            "error_iou": ((iou.sum() - iou.diagonal().sum()) / (len(iou) * (len(iou) - 1))).item(),
        }
    found = {}
    for name in own["twins"]:
        value, reference = (torch.as_tensor(own[side][name]).mean().item() for side in ("outputs", "twins"))
        found[name] = {"value": value, "reference": reference, "ratio": value / reference if reference else None}
    found["aligned_distance"]["pairs"] = (own["outputs"]["aligned_distance"] / own["twins"]["aligned_distance"].mean()).tolist()
    start = field.starts[: len(nets.weights)]
    found["own_twin_by_displacement"] = own_twin_rank(start, nets.weights, twins.weights[: len(start)])
    nearest = torch.cdist(start, twins.weights[: len(start)]).argmin(1)
    found["start_weights_nearest_to_own_twin_raw"] = (nearest == torch.arange(len(start))).double().mean().item()
    return found


def connectivity(field: Field, outputs: Tensor) -> dict:
    """Loss barriers on the test images: between outputs and their twins, outputs of two seeds after alignment, and twins
    likewise."""
    net, symmetry = field.network, field.network.alignment
    n = min(PAIRS, len(outputs) // 2)
    lines = {
        "output to its twin": (outputs[:n], field.twins[:n]),
        "outputs of two seeds, aligned": neighbours(symmetry, outputs[: 2 * n]),
        "twins of two seeds, aligned": neighbours(symmetry, field.twins[: 2 * n]),
    }
    made = {}
    for name, (one, other) in lines.items():
        losses = path_losses(net, one, other, field.inputs, field.labels)
        made[name] = {"barrier": summary(barrier(losses)), "losses": losses.mean(0).tolist()}
    return made


def sgd_epochs(field: Field, accuracy: float) -> float | None:
    """After how many epochs conventional training is as accurate, by linear interpolation; None where it never is."""
    curve = list(zip(field.epochs, field.by_epoch, strict=True))
    for (before, low), (after, high) in pairwise(curve):
        if high >= accuracy:
            return before + (after - before) * max((accuracy - low) / (high - low), 0.0) if high > low else float(before)
    return None


def audit(field: Field, sequences: Mapping[int, Tensor], judged: int, sets: Mapping[str, Measured]) -> dict:
    """The report of the sequences [net step weights] for each K, of which those of `judged` steps are judged, with the measured
    sets that `sources` names."""
    outputs = {k: states[:, -1] for k, states in sequences.items()}
    honest = sets[HONEST]
    ours, sgd = sets[OURS], honest.accuracy.mean().item()
    scored = {k: score(field.network, nets, field.inputs, field.labels)[0] for k, nets in outputs.items()}
    by_step = {str(k): summary(accuracies) for k, accuracies in scored.items()}
    reached = [k for k in sorted(scored) if scored[k].mean().item() >= sgd]
    return {
        "task": field.task.name,
        "arch": str(field.task.arch),
        "split_seed": field.task.split_seed,
        "training_nets": len(field.training),
        "heldout_nets": len(field.twins),
        "n_images": len(field.labels),
        "spread": field.spread,
        "judged_steps": judged,
        "sgd_epochs": list(field.epochs),
        "sgd_accuracy_by_epoch": field.by_epoch,
        "accuracy_by_step": by_step,
        "steps_to_match_sgd": reached[0] if reached else None,
        "sgd_epochs_that_steps_are_worth": {k: sgd_epochs(field, row["mean"]) for k, row in by_step.items()},
        "sets": {name: part.describe(field, honest) for name, part in sets.items()},
        "identity": seed_identity(field, ours, honest),
        "connectivity": connectivity(field, ours.weights),
        "basins": basins(field, ours.weights),
        "sequence": compare_sequences(field.network, sequences[max(sequences)], field.states, field.inputs, field.labels),
    }
