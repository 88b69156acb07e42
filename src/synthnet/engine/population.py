"""Conventional training of many nets at once: the population is one batched computation, never a loop over nets."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from synthnet.engine.gradients import chain_gradients, has_closed_form
from synthnet.engine.network import Network
from synthnet.engine.plan import Job, Plan, choose
from synthnet.engine.variation import AS_THEY_ARE, Variation
from synthnet.seeds import generator
from synthnet.workers import spread

PROBE_STEPS = 3


@dataclass(frozen=True)
class Recipe:
    """The conventional training of a task's twins: Adam at a constant rate; with `cosine` or `weight_decay` AdamW, whose rate
    falls to zero along a cosine. input_noise, warp: as `Variation`; smoothing: of labels. epochs: None where it is yet to be
    found (`recipes.recipe_of`)."""

    learning_rate: float
    batch_size: int
    epochs: int | None
    weight_decay: float = 0.0
    cosine: bool = False
    input_noise: float = 0.0
    warp: float = 0.0
    smoothing: float = 0.0


@dataclass(frozen=True)
class Training:
    """How a population is trained. With a shared order every net sees the same minibatches: W_final is a function of W0."""

    recipe: Recipe
    order_seed: int = 0
    per_run_order: bool = False


class Learners:
    """Nets in training: their tensors lie in one buffer, one after the other, so that the fused optimiser makes one pass."""

    def __init__(self, network: Network, start: Tensor, recipe: Recipe, backend: str, own: bool = False):
        """`own`: every net sees examples of its own."""
        self.network, self.backend, self.n_nets, self.own = network, backend, len(start), own
        self.taken = 0
        values = network.spec.unflatten(start)
        trained = {tensor.name for tensor in network.spec.floats if tensor.role == "parameter"}
        self.buffer = torch.cat([values[name].reshape(-1) for name in values if name in trained])
        self.buffer.grad = torch.zeros_like(self.buffer)
        self.gradients = self._views(self.buffer.grad, values, trained)
        self.tensors = self._views(self.buffer, values, trained)
        self.tensors |= {name: value.clone() for name, value in values.items() if name not in trained}
        kind, decay = (torch.optim.AdamW, recipe.weight_decay) if recipe.weight_decay else (torch.optim.Adam, 0.0)
        self.optimizer = kind([self.buffer], lr=recipe.learning_rate, weight_decay=decay, fused=True)
        self.closed_form = backend == "batched" and network.objective.plain and has_closed_form(network.chain)
        if not self.closed_form:
            for name, gradient in self.gradients.items():
                self.tensors[name] = self.tensors[name].detach().requires_grad_()
                self.tensors[name].grad = gradient  # backward adds into it

    def step(self, inputs: Tensor, labels: Tensor) -> None:
        """One minibatch: [example …] for all nets, or [net example …]; labels of classes are probabilities."""
        if self.closed_form:
            flat = inputs.flatten(2 if self.own else 1)
            chain_gradients(self.network.chain, self.tensors, flat, labels, self.gradients)
        else:
            self.buffer.grad.zero_()
            logits = self.network.logits_of(self.tensors, inputs, self.backend, self.own, training=True)
            self.network.objective.losses(logits, labels).sum().backward()
        self.optimizer.step()
        self.taken += 1

    def set_rate(self, rate: float) -> None:
        self.optimizer.param_groups[0]["lr"] = rate

    def weights(self) -> Tensor:
        """The weights [net weights] as they are now."""
        return self.network.spec.flatten({name: value.detach() for name, value in self.tensors.items()})

    def _views(self, buffer: Tensor, values: dict[str, Tensor], trained: set[str]) -> dict[str, Tensor]:
        shapes = {name: value.shape for name, value in values.items() if name in trained}
        parts = buffer.split([shape.numel() for shape in shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def train_population(
    network: Network,
    start: Tensor,
    inputs: Tensor,
    labels: Tensor,
    training: Training,
    save_epochs: list[int],
    run_ids: list[int] | None = None,
    plan: Plan | None = None,
) -> Tensor:
    """Train nets from start weights [net weights]; return their weights [net state weights] after each epoch in `save_epochs`.

    Epoch 0 is the start. Labels are class ids [example] or soft labels [example class]. `run_ids` seed the order of each
    run where `per_run_order` is on. A net's training does not depend on which others are trained with it.
    """
    labels = _targets(network, start, inputs, labels, training)

    def train_part(nets: slice, backend: str, epochs: list[int], n_steps: int | None = None) -> Tensor:
        ids = run_ids[nets] if run_ids is not None else None
        return _train(network, start[nets], inputs, labels, training, epochs, ids, backend, n_steps)

    def probe(plan: Plan, nets: slice) -> None:
        spread(lambda part: train_part(part, plan.backend, [1], PROBE_STEPS), plan.parts(nets.stop), plan.workers)

    plan = plan or training_plan(network, start, inputs, training, max(save_epochs, default=0), probe)
    parts = plan.parts(len(start))
    return torch.cat(spread(lambda part: train_part(part, plan.backend, save_epochs), parts, plan.workers))


def _train(
    network: Network,
    start: Tensor,
    inputs: Tensor,
    labels: Tensor,
    training: Training,
    save_epochs: list[int],
    run_ids: list[int] | None,
    backend: str,
    n_steps: int | None,
) -> Tensor:
    """Train nets together; `n_steps` ends it early."""
    saved = {0: start} if 0 in save_epochs else {}
    epochs = _epochs(network, start, inputs, labels, training, run_ids, backend, n_steps)
    for epoch, learners in itertools.islice(epochs, max(save_epochs, default=0)):
        if learners.taken == n_steps:
            return learners.weights()
        if epoch in save_epochs:
            saved[epoch] = learners.weights()
    return torch.stack([saved[epoch] for epoch in save_epochs], dim=1)


def _epochs(
    network: Network, start: Tensor, inputs: Tensor, labels: Tensor, training: Training, run_ids, backend: str, n_steps=None
) -> Iterator[tuple[int, Learners]]:
    """Nets in training after every epoch, without end; after `n_steps`, at once."""
    recipe = training.recipe
    learners = Learners(network, start, recipe, backend, training.per_run_order)
    varied = _vary_of(training, run_ids)
    all_steps = recipe.epochs * -(-len(inputs) // recipe.batch_size) if recipe.cosine else 0
    for epoch in itertools.count(1):
        for chosen in batch_orders(training, epoch, len(inputs), run_ids).split(recipe.batch_size, dim=-1):
            if chosen.shape[-1] == 1 and network.has_statistics:
                continue  # one example has no deviation
            x, y = inputs[chosen.to(inputs.device)], labels[chosen.to(labels.device)]
            if recipe.cosine:
                learners.set_rate(recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * learners.taken / all_steps)))
            learners.step(varied(x), y)
            if learners.taken == n_steps:
                yield epoch, learners
        yield epoch, learners


def _vary_of(training: Training, run_ids: list[int] | None) -> Callable[[Tensor], Tensor]:
    """What varies a minibatch: [example …] that all nets share, or [net example …], each net's by draws of its own, so that it
    trains as it would alone."""
    vary = Variation(training.recipe.input_noise, training.recipe.warp)
    if vary == AS_THEY_ARE:
        return lambda x: x
    if not training.per_run_order:
        draw = generator(training.order_seed, "input-noise")
        return lambda x: vary(x, draw)
    draws = [generator(training.order_seed, "input-noise", run) for run in run_ids]
    return lambda x: torch.stack([vary(own, draw) for own, draw in zip(x, draws, strict=True)])


def train_while(
    network: Network, start: Tensor, inputs: Tensor, labels: Tensor, training: Training, go_on: Callable[[int, Tensor], bool]
) -> None:
    """Train nets together for as long as `go_on(epoch, weights [net weights])` says so after an epoch."""
    labels = _targets(network, start, inputs, labels, training)
    backend = training_plan(network, start, inputs, training, 1).backend
    for epoch, learners in _epochs(network, start, inputs, labels, training, None, backend):
        if not go_on(epoch, learners.weights()):
            return


def _targets(network: Network, start: Tensor, inputs: Tensor, labels: Tensor, training: Training) -> Tensor:
    """Labels as the training reads them: of classes, as probabilities."""
    if not network.objective.plain or labels.is_floating_point():
        return labels
    n_classes, smoothing = network.logits(start[:1], inputs[:1]).shape[-1], training.recipe.smoothing
    labels = F.one_hot(labels, n_classes).to(inputs.dtype if inputs.is_floating_point() else torch.float32)
    return labels * (1 - smoothing) + smoothing / n_classes if smoothing else labels


def training_plan(network: Network, start: Tensor, inputs: Tensor, training: Training, epochs: int, probe=None) -> Plan:
    """How a population [net weights] is trained on inputs [example …]."""
    batch, own = inputs[: training.recipe.batch_size], training.per_run_order
    x = batch.expand(2, *batch.shape) if own else batch
    backends = network.backends(x, own)
    if any(tensor.role == "buffer" for tensor in network.spec.floats):
        backends = tuple(name for name in backends if name != "vmap")  # running statistics cannot move under vmap
    outputs, flops = network.activations(batch)
    # outputs and their gradients; weights, their gradients and two moments
    n_bytes = int(4 * (2 * outputs * len(batch) + 4 * network.spec.n_weights))
    steps = epochs * -(-len(inputs) // len(batch))
    name = f"train {network.name} {tuple(x.shape[-batch.ndim :])} own={own} x{PROBE_STEPS}"
    return choose(Job(name, len(start), n_bytes, 3 * flops * len(batch) * steps, backends, start.device), probe)


def batch_orders(training: Training, epoch: int, n_examples: int, run_ids: list[int] | None) -> Tensor:
    """Example ids of one epoch: [example] shared, or [net example] per run."""
    if not training.per_run_order:
        return torch.randperm(n_examples, generator=generator(training.order_seed, "batch-order", epoch))
    orders = [generator(training.order_seed, "batch-order", epoch, run) for run in run_ids]
    return torch.stack([torch.randperm(n_examples, generator=order) for order in orders])
