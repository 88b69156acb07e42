"""Populations scored: metric and loss of many nets, their predictions, and what each layer computes; by a plan."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from synthnet.engine.network import Network
from synthnet.engine.plan import CACHE_BYTES, Job, Plan, choose
from synthnet.engine.stacks import leading
from synthnet.nets import UntraceableError
from synthnet.workers import spread

BLOCKS = (512, 256, 128, 64)  # examples scored at a time: as many as leave room in the cache for eight nets


def layer_errors(network: Network, predicted: Tensor, target: Tensor, inputs: Tensor) -> Tensor:
    """How far predicted weights [net weights] are from target ones in what each layer computes: [net].

    Per layer, the mean squared difference of pre-activations when both read the target net's own activations on `inputs`
    [example …]; the mean over layers. A squared error of weights in the metric of the inputs they meet: weights that the data
    never excites count for nothing. Raises: UntraceableError unless the network is a chain.
    """
    if network.batched is None:
        raise UntraceableError(
            f"what the layers of {type(network.module).__name__} compute cannot be compared: it is not traced"
        )
    difference, errors = network.spec.unflatten(predicted - target), []

    def watch(name: str, module: nn.Module, again: Callable) -> None:
        if isinstance(
            module, nn.Linear | nn.Conv2d
        ):  # linear in its weights: differences of outputs are outputs of differences
            errors.append(leading(again(difference), len(target)).square().flatten(1).mean(1))

    network.batched(network.spec.unflatten(target), inputs, watch=watch)
    return torch.stack(errors).mean(0)


def score(
    network: Network, flat: Tensor, inputs: Tensor, labels: Tensor, plan: Plan | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Metric and mean loss of each net [net weights] on inputs [example …], both [net] float64 on the CPU: accuracy and
    cross-entropy where the network's objective has no other.

    dtype: what the nets compute in (bfloat16 halves the bytes; LOG.md says what that costs); the loss is always in float32.
    """
    objective = network.objective
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    if not objective.plain:  # a metric may need all examples at once
        outputs = _over_nets(network, flat.to(dtype), inputs, lambda outputs, _: outputs.float(), plan)
        return objective.metrics(outputs, labels).cpu(), objective.losses(outputs, labels).double().cpu()

    def measure(logits: Tensor, block: slice) -> Tensor:
        logits = logits.float()
        means = [objective.metrics(logits, labels[block]), objective.losses(logits, labels[block]).double()]
        return torch.stack(means, dim=-1).unsqueeze(1) * (logits.shape[1] / len(inputs))

    accuracies, losses = _over_nets(network, flat.to(dtype), inputs, measure, plan).sum(1).cpu().unbind(1)
    return accuracies, losses


def predictions(network: Network, flat: Tensor, inputs: Tensor, plan: Plan | None = None) -> Tensor:
    """Class probabilities [net example class], or outputs as they are where there are no classes."""
    return _over_nets(network, flat, inputs, lambda outputs, _: network.objective.predictions(outputs), plan)


def _over_nets(network: Network, flat: Tensor, inputs: Tensor, measure, plan: Plan | None) -> Tensor:
    """measure(logits [net example class], examples) [net examples' …] of all nets, blocks of examples joined along axis 1."""
    size = _block(network, flat, inputs)
    blocks = [slice(first, first + size) for first in range(0, len(inputs), size)]

    @torch.no_grad()
    def part(nets: slice, backend: str) -> Tensor:
        tensors = network.spec.unflatten(flat[nets])
        return torch.cat([measure(network.logits_of(tensors, inputs[b], backend), b) for b in blocks], dim=1)

    plan = plan or scoring_plan(network, flat, inputs, lambda plan, nets: _spread(part, nets, plan))
    return _spread(part, slice(0, len(flat)), plan)


def _spread(part, nets: slice, plan: Plan) -> Tensor:
    return torch.cat(spread(lambda rows: part(rows, plan.backend), plan.parts(nets.stop), plan.workers))


def _block(network: Network, flat: Tensor, inputs: Tensor) -> int:
    outputs, _ = network.activations(inputs)
    return next((n for n in BLOCKS if 8 * n * outputs * flat.element_size() <= CACHE_BYTES), BLOCKS[-1])


def scoring_plan(network: Network, flat: Tensor, inputs: Tensor, probe=None) -> Plan:
    """How a population [net weights] is scored on inputs [example …]."""
    backends = network.backends(inputs)
    outputs, flops = network.activations(inputs)
    n_bytes = (outputs * min(len(inputs), _block(network, flat, inputs)) + network.spec.n_weights) * flat.element_size()
    name = f"score {network.name} {tuple(inputs.shape)} {flat.dtype}"
    return choose(Job(name, len(flat), int(n_bytes), flops * len(inputs), backends, flat.device), probe)
