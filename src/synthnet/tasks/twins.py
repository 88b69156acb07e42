"""Twins: the conventionally trained nets of the same start weights, the reference for accuracy."""

import torch
from torch import Tensor

from synthnet.engine import Training, train_population
from synthnet.nets import aligned_distance
from synthnet.tasks.recipes import Strong, recall, recipe_of, remember, strong_recipe
from synthnet.tasks.task import Task


def grow_twins(task: Task, start: Tensor, split: str = "train") -> Tensor:
    """The twins [net weights] of start weights: the task's recipe, shared order, on one split. The reference for accuracy."""
    inputs, labels = (part.to(start.device) for part in task.examples(split))
    recipe = recipe_of(task)
    return train_population(task.network, start, inputs, labels, Training(recipe), [recipe.epochs])[:, 0]


def grow_strong(task: Task, start: Tensor, done: bool = False) -> tuple[Tensor, Strong]:
    """Strong twins [net weights] of start weights, by the recipe that a search on val found (`strong_recipe`), and that."""
    strong = strong_recipe(task, done=done)
    inputs, labels = (part.to(start.device) for part in task.examples("train"))
    ids = list(range(len(start)))
    nets = train_population(task.network, start, inputs, labels, strong.training, [strong.recipe.epochs], run_ids=ids)
    return nets[:, 0], strong


def twins_apart(task: Task, n_seeds: int, device: torch.device) -> float:
    """The aligned distance between the twins of the first start weights that are validated on; measured once and kept."""
    kind = f"apart-{n_seeds}-{task.name}"
    kept = recall(task, kind)
    if kept is None:
        start = task.draw_start("val", list(range(n_seeds))).to(device)
        twins = grow_twins(task, start) if task.data is not None else start  # rewards alone: as far apart as start weights
        kept = remember(task, kind, {"distance": aligned_distance(task.network.alignment, twins)})
    return kept["distance"]
