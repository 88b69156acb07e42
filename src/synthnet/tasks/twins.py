"""Twins: the conventionally trained nets of the same start weights, the reference for accuracy."""

import torch
from torch import Tensor

from synthnet.engine import Training
from synthnet.nets import aligned_distance
from synthnet.tasks.judging import judge, trained
from synthnet.tasks.recipes import Strong, recall, recipe_of, remember, strong_recipe
from synthnet.tasks.task import Task


def grow_twins(task: Task, start: Tensor, split: str = "train", spec: Tensor | None = None) -> Tensor:
    """The twins [net weights] of start weights: the task's recipe, shared order, on one split. The reference for accuracy."""
    return trained(task, start, Training(recipe_of(task)), split, spec=spec)


def grow_strong(task: Task, start: Tensor, done: bool = False, spec: Tensor | None = None) -> tuple[Tensor, Strong]:
    """Strong twins [net weights] of start weights, by the recipe that a search on val found (`strong_recipe`), and that."""
    strong = strong_recipe(task, done=done)
    return trained(task, start, strong.training, run_ids=list(range(len(start))), spec=spec), strong


def twins_on_val(task: Task, n_seeds: int, device: torch.device) -> dict[str, float]:
    """Of the twins of the first start weights that are validated on, the aligned distance between them and, where there are
    data, their mean `metric` on val; measured once and kept."""
    kind = f"twins-{n_seeds}-{task.name}"
    kept = recall(task, kind)
    if kept is None:
        seeds = list(range(n_seeds))
        start, spec = task.draw_start("val", seeds).to(device), task.draw_spec("val", seeds)
        twins, found = start, {}  # of rewards alone: as far apart as start weights
        if task.data is not None:
            twins = grow_twins(task, start, spec=spec)
            inputs, targets = (part.to(device) for part in task.examples("val"))
            found["metric"] = judge(task, twins, inputs, targets, spec)[0].mean().item()
        kept = remember(task, kind, {"distance": aligned_distance(task.network.alignment, twins), **found})
    return kept
