"""Twins: the conventionally trained nets of the same start weights, the reference for accuracy."""

from torch import Tensor

from synthnet.engine import Training, train_population
from synthnet.tasks.task import Task


def grow_twins(task: Task, start: Tensor, split: str = "train") -> Tensor:
    """The twins [net weights] of start weights: the task's recipe, shared order, on one split. The reference for accuracy."""
    inputs, labels = (part.to(start.device) for part in task.data(split))
    return train_population(task.network, start, inputs, labels, Training(task.recipe), [task.recipe.epochs])[:, 0]
