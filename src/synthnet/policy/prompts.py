"""What one update of distil or GRPO works on: fresh start weights, how many synth steps, and a minibatch of images."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from synthnet.engine.variation import AS_THEY_ARE, Variation
from synthnet.seeds import generator
from synthnet.tasks.task import Task

# Start seeds of each stage begin far above those of any zoo, so that no stage sees another's start weights.
FIRST_SEED = {"distil": 1 << 23, "grpo": 1 << 24, "critic": 1 << 26, "role-noise": 1 << 27}


class Prompt(NamedTuple):
    """n_steps synth steps from `start` [net weights]; images [example feature] and labels [example] or [example class]."""

    n_steps: int
    start: Tensor
    images: Tensor
    labels: Tensor


def draw_prompt(
    stage: str,
    task: Task,
    split: str,
    place: torch.device,
    steps: Sequence[int],
    n_starts: int,
    n_images: int,
    seed: int,
    update: int,
    labels: Tensor | None = None,
    vary: Variation = AS_THEY_ARE,
) -> Prompt:
    """The prompt of one update, on images of a split: a pure function of (stage, seed, update).

    Each start state is used in one update only. `labels`: other ones than the data's own. `vary`: what becomes of the images.
    """
    draw, (inputs, own) = generator(seed, stage, update), task.data(split)
    labels = own if labels is None else labels
    n_steps = steps[torch.randint(len(steps), (1,), generator=draw).item()]
    first = FIRST_SEED[stage] + update * n_starts
    start = task.draw_start("zoo", list(range(first, first + n_starts))).to(place)
    chosen = torch.randperm(len(inputs), generator=draw)[:n_images]
    images = vary(inputs[chosen].to(place), draw)
    return Prompt(n_steps, start, images, labels[chosen.to(labels.device)].to(place))
