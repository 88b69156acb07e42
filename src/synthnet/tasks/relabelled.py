"""Tasks made of another's labels: a spec says which classes are "yes", and nets answer yes or no; or as which each counts.

The protocol for unseen tasks of recurrent parameter generation (Wang et al. 2025, arXiv 2501.11587): of the 1,022 ways to call
some but not all of ten classes "yes", 822 are trained on and 200 are not. Ten classes can be given new numbers in 10^10 ways,
of which two draws are hardly ever alike.
"""

import torch
from torch import Tensor

from synthnet.engine import Recipe, Variants
from synthnet.nets import Arch
from synthnet.seeds import generator
from synthnet.tasks.source import Source
from synthnet.tasks.task import Task

N_CLASSES, N_UNSEEN = 10, 200


def answers(inputs: Tensor, labels: Tensor, spec: Tensor) -> tuple[Tensor, Tensor]:
    """The same inputs; what the spec [net class] says of each label [example]: [net example]."""
    return inputs, spec.long()[:, labels]


def questions() -> Variants:
    """All ways to call some but not all classes yes, in a fixed random order: those that are trained on, and the rest."""
    numbers = torch.arange(1, 2**N_CLASSES - 1)
    bits = (numbers[:, None] >> torch.arange(N_CLASSES)) & 1
    bits = bits[torch.randperm(len(bits), generator=generator(0, "questions"))]
    return Variants({f"yes{c}": [0, 1] for c in range(N_CLASSES)}, bits[N_UNSEEN:], bits[:N_UNSEEN])


def yes_or_no(name: str, source: Source, sizes: list[int], recipe: Recipe) -> Task:
    """The task of answering by an MLP of these sizes."""
    return _relabelled(name, source, [*sizes, 2], recipe, questions())


def renumbered(name: str, source: Source, sizes: list[int], recipe: Recipe) -> Task:
    """The task of telling classes, several of which may count as one, by an MLP of these sizes: class{c} is what class c counts
    as."""
    spec = {f"class{c}": list(range(N_CLASSES)) for c in range(N_CLASSES)}
    return _relabelled(name, source, [*sizes, N_CLASSES], recipe, spec)


def _relabelled(name: str, source: Source, sizes: list[int], recipe: Recipe, spec: Variants | dict) -> Task:
    arch = Arch.of("mlp", sizes=sizes)
    return Task(name=name, arch=arch, data=source, recipe=recipe, spec=spec, variant=answers, named_only=True)
