"""The audit: does a generator make new, different, working nets, or does it copy? One set of measures for outputs and controls.

Outputs grow from the starts of the zoo's held-out runs, so each has its conventionally trained twin. Every measure is explained
in docs/metrics.md, with what fools it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from synthnet.baselines import checkpoints
from synthnet.baselines.ddpm import Ddpm, DdpmConfig
from synthnet.connectivity import barrier, path_losses
from synthnet.errors import InputError
from synthnet.evaluation import split_data, summary
from synthnet.functional import Network, predictions, score
from synthnet.identity import canonical, ensemble_gain, own_twin_rank, pair_distances
from synthnet.identity import disagreement as disagreement_of
from synthnet.novelty import copying_z, error_iou, highest, nearest_aligned, nearest_raw, novel_and_performant
from synthnet.seeds import generator
from synthnet.sequence import compare_sequences
from synthnet.start import init_scale
from synthnet.tasks import Task
from synthnet.zoo import Zoo

CONTROL_NETS = 100  # of each control, as in the published protocol
NOISES = (0.05, 0.1)
PERFORMANT_QUANTILE = 0.05  # of the held-out SGD nets' accuracies: the bar of 'performant'
PATHS = 16
N_CONTROLS = 12
OURS = "outputs"
COPY_SHARE = 0.75  # of the nearest held-out net's distance: no honest net comes so close to a training net


@dataclass(frozen=True)
class Field:
    """What outputs are judged against: the zoo's training nets and their starts, and the starts, states and twins of held-out
    runs, all [net weights] (states [run state weights]), with the test images."""

    task: Task
    training: Tensor
    training_starts: Tensor
    states: Tensor
    epochs: tuple[int, ...]
    inputs: Tensor
    labels: Tensor
    spread: float

    @classmethod
    def of_zoo(cls, task: Task, zoo: Zoo, n_training: int, n_heldout: int) -> "Field":
        """Raises: InputError where the zoo has too few runs."""
        runs, heldout = zoo.states("zoo", n_training), zoo.states("heldout", n_heldout)
        if len(runs) < 2 or len(heldout) < 2:
            raise InputError(f"an audit needs at least two training and two held-out runs, {zoo.path} has fewer")
        late = pair_steps(task.network, runs[:64, -2], runs[:64, -1])
        epochs = tuple(next(row for row in zoo.index if row["purpose"] == "heldout")["epochs"])
        inputs, labels = split_data(task, "test")
        return cls(task, runs[:, -1], runs[:, 0], heldout, epochs, inputs, labels, late)

    @property
    def network(self) -> Network:
        return self.task.network

    @property
    def starts(self) -> Tensor:
        return self.states[:, 0]

    @property
    def twins(self) -> Tensor:
        return self.states[:, -1]

    @cached_property
    def training_wrong(self) -> Tensor:
        return _wrong(self, self.training)[1]

    @cached_property
    def by_epoch(self) -> list[float]:
        """Mean accuracy of the held-out runs after each of `epochs`."""
        places = range(self.states.shape[1])
        return [score(self.network, self.states[:, i], self.inputs, self.labels)[0].mean().item() for i in places]


def pair_steps(network: Network, before: Tensor, after: Tensor) -> float:
    """The zoo's spread: how far a run moves between its last two saved states, median, after balancing and scaling."""
    one, other = (canonical(network.symmetry, flat) for flat in (before, after))
    return (one - other).norm(dim=1).median().item()


@dataclass(frozen=True)
class Measured:
    """One set of nets on all axes; per net [net] unless said otherwise."""

    weights: Tensor
    probabilities: Tensor
    accuracy: Tensor
    max_iou: Tensor
    raw: Tensor
    aligned: Tensor

    def describe(self, field: Field, honest: "Measured") -> dict:
        bar = honest.accuracy.quantile(PERFORMANT_QUANTILE).item()
        return {
            "nets": len(self.accuracy),
            "accuracy": summary(self.accuracy),
            "max_error_iou": summary(self.max_iou),
            "nearest_raw": summary(self.raw),
            "nearest_aligned": summary(self.aligned),
            "zu_aligned": copying_z(*apart(self.aligned, honest.aligned)),
            "zu_raw": copying_z(*apart(self.raw, honest.raw)),
            "copies": (self.aligned < COPY_SHARE * honest.aligned.min()).double().mean().item(),
            "novel_and_performant": novel_and_performant(self.aligned, self.accuracy, field.spread, bar),
        }


def apart(values: Tensor, honest: Tensor) -> tuple[Tensor, Tensor]:
    """Figures of nets [net] from the first half of the held-out starts and of honest nets from the second: two samples of one
    start would not be independent, as the test of copying assumes."""
    half = len(honest) // 2
    return values[:half], honest[half:]


def _wrong(field: Field, nets: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities [net example class] and misclassified examples [net example]."""
    probabilities = predictions(field.network, nets, field.inputs)
    return probabilities, probabilities.argmax(-1) != field.labels


def measure(field: Field, nets: Tensor, own: Tensor | None = None, tick: Callable[[], None] = lambda: None) -> Measured:
    """A set of nets [net weights] on all axes. `own` [net]: which training net each of them is, if they are the zoo's."""
    probabilities, wrong = _wrong(field, nets)
    return Measured(
        nets,
        probabilities,
        1 - wrong.double().mean(1),
        highest(error_iou(wrong, field.training_wrong), own).double(),
        nearest_raw(nets, field.training, own),
        nearest_aligned(field.network.symmetry, nets, field.training, own, tick),
    )


def make_controls(field: Field, seed: int = 0, n: int = CONTROL_NETS, ddpm: DdpmConfig | None = None) -> dict[str, Tensor]:
    """Name -> weights [net weights] of every control that needs no policy."""
    symmetry, training, scale = field.network.symmetry, field.training, init_scale(field.network.spec)
    best = training[score(field.network, training[:256], *field.task.data("val"))[0].argmax()]
    draw = lambda name: generator(seed, f"audit-{name}")  # noqa: E731
    n = min(n, len(field.starts))
    made = {
        "start weights": field.starts[:n],
        "training net, copied": checkpoints.copies(training, n, draw("copies")),
        "nearest start's training net": checkpoints.retrieved(training, field.training_starts, field.starts[:n]),
        "training net, permuted": checkpoints.permuted(training, n, draw("permuted"), symmetry),
        **{f"training net + noise {x}": checkpoints.noisy(training, n, draw(f"noise-{x}"), scale, x) for x in NOISES},
        "average of 16": checkpoints.averages(training, n, draw("averages")),
        "per-coordinate Gaussian": checkpoints.gaussian(training, n, draw("gaussian")),
        "aligned interpolation": checkpoints.interpolations(training, n, draw("interpolations"), symmetry),
        "aligned soup of 16": checkpoints.soups(training, n, draw("soups"), symmetry),
        "constant net": checkpoints.constant(best, n),
    }
    if ddpm is not None:
        made["DDPM"] = Ddpm(training, ddpm, seed).sample(n, seed)
    return made


def seed_identity(field: Field, nets: Measured, twins: Measured) -> dict:
    """Do outputs of different seeds differ as SGD nets do, and which twin does each point to? Ratios to the twins' own
    figures."""
    symmetry, own = field.network.symmetry, {}
    for name, part in (("outputs", nets), ("twins", twins)):
        wrong = part.probabilities.argmax(-1) != field.labels
        iou = error_iou(wrong, wrong)
        own[name] = {
            "aligned_distance": pair_distances(symmetry, part.weights),
            "disagreement": disagreement_of(part.probabilities),
            "ensemble_gain": ensemble_gain(part.probabilities, field.labels),
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
    net, symmetry = field.network, field.network.symmetry
    n = min(PATHS, len(outputs) // 2)
    aligned = lambda flat: torch.stack([symmetry.align(flat[2 * i], flat[2 * i + 1])[0] for i in range(n)])  # noqa: E731
    lines = {
        "output to its twin": (outputs[:n], field.twins[:n]),
        "outputs of two seeds, aligned": (aligned(outputs), outputs[1 : 2 * n : 2]),
        "twins of two seeds, aligned": (aligned(field.twins), field.twins[1 : 2 * n : 2]),
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


def audit(
    field: Field,
    sequences: Mapping[int, Tensor],
    judged: int,
    controls: Mapping[str, Tensor],
    tick: Callable[[], None] = lambda: None,
) -> tuple[dict, dict[str, Measured]]:
    """The report of the sequences [net step weights] for each K, of which those of `judged` steps are judged, and everything
    measured on their last states."""
    outputs = {k: states[:, -1] for k, states in sequences.items()}
    honest = measure(field, field.twins, tick=tick)
    first = torch.arange(min(CONTROL_NETS, len(field.training)))
    sets = {OURS: measure(field, outputs[judged], tick=tick)}
    sets |= {"held-out SGD nets": honest, "training nets": measure(field, field.training[first], own=first, tick=tick)}
    sets |= {name: measure(field, nets, tick=tick) for name, nets in controls.items()}
    ours, sgd = sets[OURS], honest.accuracy.mean().item()
    scored = {k: score(field.network, nets, field.inputs, field.labels)[0] for k, nets in outputs.items()}
    by_step = {str(k): summary(accuracies) for k, accuracies in scored.items()}
    reached = [k for k in sorted(scored) if scored[k].mean().item() >= sgd]
    report = {
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
        "sequence": compare_sequences(field.network, sequences[max(sequences)], field.states, field.inputs, field.labels),
    }
    return report, sets
