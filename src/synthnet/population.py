"""Conventional training of many nets at once: the population is one batched computation, never a loop over nets."""

from dataclasses import dataclass

import torch
from torch import Tensor

from synthnet.functional import Network, cross_entropy
from synthnet.seeds import generator
from synthnet.tasks import Recipe, Task


@dataclass(frozen=True)
class Training:
    """How a population is trained. With a shared order every net sees the same minibatches: W_final is a function of W0."""

    recipe: Recipe
    order_seed: int = 0
    per_run_order: bool = False
    input_noise: float = 0.0


def train_population(
    network: Network,
    start: Tensor,
    inputs: Tensor,
    labels: Tensor,
    training: Training,
    save_epochs: list[int],
    run_ids: list[int] | None = None,
) -> Tensor:
    """Train nets from start weights [net weights]; return their weights [net state weights] after each epoch in `save_epochs`.

    Epoch 0 is the start. Labels are class ids [example] or soft labels [example class]. `run_ids` seed the order of each
    run where `per_run_order` is on.
    """
    recipe, n_examples = training.recipe, len(inputs)
    tensors = {name: value.clone().requires_grad_() for name, value in network.spec.unflatten(start).items()}
    optimizer = torch.optim.Adam(list(tensors.values()), lr=recipe.learning_rate, fused=True)
    noise = generator(training.order_seed, "input-noise")
    saved = {0: start} if 0 in save_epochs else {}
    for epoch in range(1, max(save_epochs, default=0) + 1):
        for chosen in _orders(training, epoch, n_examples, run_ids).split(recipe.batch_size, dim=-1):
            chosen = chosen.to(inputs.device)
            x, y = inputs[chosen], labels[chosen]
            if training.input_noise:
                x = x + training.input_noise * torch.randn(x.shape, generator=noise).to(x)
            optimizer.zero_grad(set_to_none=True)
            cross_entropy(network.logits_of(tensors, x), y).sum().backward()
            optimizer.step()
        if epoch in save_epochs:
            saved[epoch] = network.spec.flatten({name: value.detach() for name, value in tensors.items()})
    return torch.stack([saved[epoch] for epoch in save_epochs], dim=1)


def _orders(training: Training, epoch: int, n_examples: int, run_ids: list[int] | None) -> Tensor:
    """Example ids of one epoch: [example] shared, or [net example] per run."""
    if not training.per_run_order:
        return torch.randperm(n_examples, generator=generator(training.order_seed, "batch-order", epoch))
    orders = [generator(training.order_seed, "batch-order", epoch, run) for run in run_ids]
    return torch.stack([torch.randperm(n_examples, generator=order) for order in orders])


def grow_twins(task: Task, start: Tensor, split: str = "train", chunk: int = 128) -> Tensor:
    """The twins [net weights] of start weights: the task's recipe, shared order, on one split. The reference for accuracy."""
    inputs, labels = (part.to(start.device) for part in task.data(split))
    training = Training(task.recipe)
    parts = [
        train_population(task.network, weights, inputs, labels, training, [task.recipe.epochs])[:, 0]
        for weights in start.split(chunk)
    ]
    return torch.cat(parts)
