"""Nets of a task judged and trained, each on the data as they are for its spec where the task has variants."""

import torch
from torch import Tensor

from synthnet.engine import Training, score, train_population
from synthnet.errors import InputError
from synthnet.tasks.task import Task


def judge(task: Task, nets: Tensor, inputs: Tensor, targets: Tensor, spec: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Metric and loss of nets [net weights], [net] each, on examples as they are for their specs [net number]."""
    if task.variant is None:
        return score(task.network, nets, inputs, targets)
    found = [score(task.network, nets[i : i + 1], *_own(task, inputs, targets, spec, i)) for i in range(len(nets))]
    metrics, losses = zip(*found, strict=True)
    return torch.cat(metrics), torch.cat(losses)


def trained(
    task: Task,
    start: Tensor,
    training: Training,
    split: str = "train",
    run_ids: list[int] | None = None,
    spec: Tensor | None = None,
) -> Tensor:
    """Nets [net weights] trained from start weights for the epochs of the recipe, each on the data of its spec."""
    inputs, targets = (part.to(start.device) for part in task.examples(split))
    epochs = [training.recipe.epochs]
    if task.variant is None:
        return train_population(task.network, start, inputs, targets, training, epochs, run_ids=run_ids)[:, 0]
    made = []
    for i in range(len(start)):  # data of its own for each: no population to batch
        own, ids = _own(task, inputs, targets, spec, i), None if run_ids is None else run_ids[i : i + 1]
        made.append(train_population(task.network, start[i : i + 1], *own, training, epochs, run_ids=ids)[:, 0])
    return torch.cat(made)


def _own(task: Task, inputs: Tensor, targets: Tensor, spec: Tensor | None, net: int) -> tuple[Tensor, Tensor]:
    """The data of one net."""
    if spec is None:
        raise InputError(f"task {task.name} has variants, and nothing says which its nets are for")
    own_inputs, own_targets = task.varied(inputs, targets, spec[net : net + 1])
    return own_inputs[0], own_targets[0]
