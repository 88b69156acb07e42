"""What an audit measures, and against what: the field of training and held-out nets, and one set of nets on all axes of it.

A measured set has a file, so that an audit's sets can be measured one by one, in any process, and a killed audit goes on.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from synthnet.audit.evaluation import split_data, summary
from synthnet.audit.novelty import copying_z, error_iou, highest, nearest_aligned, nearest_raw, novel_and_performant
from synthnet.engine import Network, predictions, score
from synthnet.errors import InputError
from synthnet.files import write_safetensors
from synthnet.nets import canonical
from synthnet.tasks import Task
from synthnet.train import Zoo

PERFORMANT_QUANTILE = 0.05  # of the held-out SGD nets' accuracies: the bar of 'performant'
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

    def write(self, path: Path) -> None:
        write_safetensors(path, {part.name: getattr(self, part.name) for part in fields(self)})

    @classmethod
    def read(cls, path: Path) -> "Measured":
        return cls(**load_file(path))

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
