"""Many weight sets of one architecture at once: logits, loss and accuracy as functions of flat weights.

Backends give the same numbers to 1e-5: `batched` (our own, for chains: the population is one large matrix), `vmap`
(torch.func over functional_call) and `loop`. No module is ever mutated.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from synthnet.arch import Arch
from synthnet.chain import ACTIVATIONS, Chain, UntraceableError, trace
from synthnet.weights import WeightSpec


@dataclass(frozen=True)
class Network:
    """An architecture prepared for population work: its module skeleton, spec and (where it is one) chain."""

    module: nn.Module
    spec: WeightSpec

    @classmethod
    def of_module(cls, module: nn.Module) -> "Network":
        return cls(module.eval(), WeightSpec.of_module(module))

    @cached_property
    def chain(self) -> Chain | None:
        try:
            return trace(self.module)
        except UntraceableError:
            return None

    def logits(self, flat: Tensor, inputs: Tensor, backend: str = "auto") -> Tensor:
        """Logits [net example class] of weights [net weights] on shared inputs [example feature] or own ones
        [net example feature]. Backend: batched, vmap, loop, or auto (batched for chains, else loop)."""
        return self.logits_of(self.spec.unflatten(flat), inputs, backend)

    def logits_of(self, tensors: dict[str, Tensor], inputs: Tensor, backend: str = "auto") -> Tensor:
        """As `logits`, for stacked tensors [net *shape] by name."""
        if backend == "auto":
            backend = "batched" if self.chain is not None else "loop"
        if backend == "batched":
            return _batched_logits(self.chain, tensors, inputs)
        call = lambda weights, x: functional_call(self.module, weights, (x,), strict=True)  # noqa: E731
        own = inputs.ndim == 3
        if backend == "vmap":
            return vmap(call, in_dims=(0, 0 if own else None))(tensors, inputs)
        if backend == "loop":
            n_nets = next(iter(tensors.values())).shape[0]
            nets = ({name: value[i] for name, value in tensors.items()} for i in range(n_nets))
            return torch.stack([call(net, inputs[i] if own else inputs) for i, net in enumerate(nets)])
        raise ValueError(f"backend must be auto, batched, vmap or loop, got {backend!r}")


@lru_cache(maxsize=256)
def network(arch: Arch) -> Network:
    """The prepared network of an architecture (cached: tracing happens once)."""
    return Network.of_module(arch.skeleton())


def _batched_logits(chain: Chain, tensors: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """Units are rows and examples are columns, so the first layer of all nets is one matrix product."""
    first = tensors[chain.layers[0].weight]
    n_nets = first.shape[0]
    hidden = None
    for layer in chain.layers:
        weight = tensors[layer.weight]
        bias = tensors[layer.bias].unsqueeze(-1) if layer.bias else weight.new_zeros(n_nets, layer.n_out, 1)
        if hidden is not None:
            hidden = torch.baddbmm(bias, weight, hidden)
        elif inputs.ndim == 3:
            hidden = torch.baddbmm(bias, weight, inputs.transpose(1, 2))
        else:
            rows = torch.addmm(bias.reshape(-1, 1), weight.reshape(-1, layer.n_in), inputs.t())
            hidden = rows.view(n_nets, layer.n_out, -1)
        if layer.activation:
            hidden = ACTIVATIONS[layer.activation](hidden)
    return hidden.transpose(1, 2)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy per net [net], in nats. Labels: [example] or [net example] class ids, or soft [example class]."""
    log_probs = F.log_softmax(logits, dim=-1)
    if labels.is_floating_point():
        return -(log_probs * labels).sum(-1).mean(-1)
    picked = log_probs.gather(-1, labels.expand(logits.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    return -picked.mean(-1)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of correct predictions per net [net], in [0, 1], float64."""
    return (logits.argmax(-1) == labels).double().mean(-1)


def layer_errors(network: Network, predicted: Tensor, target: Tensor, inputs: Tensor) -> Tensor:
    """How far predicted weights [net weights] are from target ones in what each layer computes: [net].

    Per layer, the mean squared difference of pre-activations when both read the target net's own activations on `inputs`
    [example …]; the mean over layers. A squared error of weights in the metric of the inputs they meet: weights that the data
    never excites count for nothing. Raises: UntraceableError unless the network is a chain.
    """
    chain = network.chain or trace(network.module)
    difference, clean = network.spec.unflatten(predicted - target), network.spec.unflatten(target)
    activations, total = inputs.flatten(1).t().expand(len(target), -1, -1), 0.0
    for layer in chain.layers:
        error = torch.bmm(difference[layer.weight], activations)
        pre = torch.bmm(clean[layer.weight], activations)
        if layer.bias:
            error, pre = error + difference[layer.bias].unsqueeze(-1), pre + clean[layer.bias].unsqueeze(-1)
        total = total + error.square().mean((1, 2))
        activations = ACTIVATIONS[layer.activation](pre) if layer.activation else None
    return total / chain.depth


@torch.no_grad()
def score(network: Network, flat: Tensor, inputs: Tensor, labels: Tensor, chunk: int = 256) -> tuple[Tensor, Tensor]:
    """Accuracy and mean cross-entropy of each net, both [net] float64 on the CPU; `chunk` nets at a time bound memory."""
    accuracies, losses = [], []
    for weights in flat.split(chunk):
        logits = network.logits(weights, inputs)
        accuracies.append(accuracy(logits, labels).cpu())
        losses.append(cross_entropy(logits, labels).double().cpu())
    return torch.cat(accuracies), torch.cat(losses)


@torch.no_grad()
def predictions(network: Network, flat: Tensor, inputs: Tensor, chunk: int = 256) -> Tensor:
    """Class probabilities [net example class]."""
    return torch.cat([network.logits(weights, inputs).softmax(-1) for weights in flat.split(chunk)])
