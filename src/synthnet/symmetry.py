"""Which axis of which tensor belongs to which group of interchangeable units, and what follows: permute, balance, align.

Hidden units of a chain can be permuted without changing the function (Hecht-Nielsen 1990); ReLU units can also be
rescaled (incoming times c, outgoing over c). Axes that are tied to data (inputs, classes) belong to no group.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from synthnet.chain import Chain
from synthnet.errors import InputError
from synthnet.weights import WeightSpec

ALIGN_SWEEPS = 50


@dataclass(frozen=True)
class Symmetry:
    """Per tensor, the unit group of each axis (None: fixed); per group, its number of units, in order of depth."""

    spec: WeightSpec
    axes: Mapping[str, tuple[str | None, ...]]
    groups: Mapping[str, int]
    chain: Chain

    @classmethod
    def of_chain(cls, spec: WeightSpec, chain: Chain | None) -> "Symmetry":
        """Raises: InputError for a network that is no chain (None)."""
        if chain is None:
            raise InputError("the unit groups of this network are not known: only chains of Linear layers are traced")
        axes, groups, below = {}, {}, None
        for index, layer in enumerate(chain.layers):
            last = index == chain.depth - 1
            here = None if last else f"hidden{index + 1}"
            axes[layer.weight] = (here, below)
            if layer.bias:
                axes[layer.bias] = (here,)
            if here:
                groups[here] = layer.n_out
            below = here
        return cls(spec, axes, groups, chain)

    @cached_property
    def _index(self) -> Tensor:
        return torch.arange(self.spec.n_weights)

    def permute(self, flat: Tensor, permutations: Mapping[str, Tensor]) -> Tensor:
        """Weights [... weights] with the units of each named group reordered: new unit i is old unit permutation[i]."""
        tensors = dict(self.spec.unflatten(self._index))
        for name, groups in self.axes.items():
            for axis, group in enumerate(groups):
                if group in permutations:
                    tensors[name] = tensors[name].index_select(axis, permutations[group])
        order = torch.cat([tensors[t.name].reshape(-1) for t in self.spec.floats])
        return flat[..., order]

    def balance(self, flat: Tensor) -> Tensor:
        """Weights [net weights] of the same function in which each ReLU unit's incoming and outgoing norms are equal.

        Norms include the bias. Sweeps from the first layer on until nothing moves. Nets that are not positively homogeneous
        are returned unchanged.
        """
        if not self.chain.homogeneous or not self.groups:
            return flat
        tensors = {name: value.clone() for name, value in self.spec.unflatten(flat).items()}
        for _ in range(1 if len(self.groups) == 1 else ALIGN_SWEEPS):
            largest = 0.0
            for layer, after in zip(self.chain.layers, self.chain.layers[1:], strict=False):
                incoming = tensors[layer.weight].square().sum(-1)
                if layer.bias:
                    incoming = incoming + tensors[layer.bias].square()
                outgoing = tensors[after.weight].square().sum(-2)
                ratio = (outgoing / incoming).pow(0.25)
                ratio = torch.where((outgoing > 0) & (incoming > 0), ratio, torch.ones_like(ratio))
                tensors[layer.weight] *= ratio.unsqueeze(-1)
                if layer.bias:
                    tensors[layer.bias] *= ratio
                tensors[after.weight] /= ratio.unsqueeze(-2)
                largest = max(largest, (ratio - 1).abs().max().item())
            if largest < 1e-6:
                break
        return torch.cat([tensors[t.name].reshape(*flat.shape[:-1], -1) for t in self.spec.floats], dim=-1)

    def align(self, flat: Tensor, reference: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One net's weights [weights], its units permuted to lie as near to `reference` [weights] as a fixed point allows.

        Coordinate descent over groups with the Hungarian algorithm (Ainsworth et al. 2022, 'Git Re-Basin', algorithm 1);
        exact for a single hidden layer. Returns the aligned weights and the permutation of each group.
        """
        permutations = {group: torch.arange(size) for group, size in self.groups.items()}
        target = self.spec.unflatten(reference)
        for _ in range(ALIGN_SWEEPS):
            changed = False
            for group, size in self.groups.items():
                others = {g: p for g, p in permutations.items() if g != group}
                tensors = self.spec.unflatten(self.permute(flat, others))
                gain = torch.zeros(size, size, dtype=torch.float64)
                for name, axes in self.axes.items():
                    for axis, member in enumerate(axes):
                        if member == group:
                            rows = target[name].movedim(axis, 0).reshape(size, -1).double()
                            gain += rows @ tensors[name].movedim(axis, 0).reshape(size, -1).double().T
                best = torch.as_tensor(linear_sum_assignment(gain.numpy(), maximize=True)[1])
                improves = gain[torch.arange(size), best].sum() > gain[torch.arange(size), permutations[group]].sum() + 1e-9
                if improves:
                    permutations[group], changed = best, True
            if not changed:
                break
        return self.permute(flat, permutations), permutations


@lru_cache(maxsize=64)
def draw_init(spec: WeightSpec, draw: torch.Generator) -> Tensor:
    """Start weights [weights] by torch's default rule for Linear and Conv: uniform in ±1/√fan_in, biases too.

    A norm starts as the identity: scale and running variance 1, shift and running mean 0.
    """
    flat = (2 * torch.rand(spec.n_weights, generator=draw) - 1) * init_scale(spec)
    shapes = {tensor.name: tensor.shape for tensor in spec.floats}
    for name, place in spec.slices().items():
        owner, _, local = name.rpartition(".")
        if len(shapes[name]) == 1 and len(shapes.get(f"{owner}.weight", ())) < 2:
            flat[place] = float(local in ("weight", "running_var"))
    return flat


def init_scale(spec: WeightSpec) -> Tensor:
    """The scale of each weight [weights], from names and shapes alone: 1/√fan_in, torch's initial bound for Linear and Conv.

    A bias takes the fan-in of the weight it stands beside; a lone one-dimensional tensor (a norm's scale) takes 1.
    """
    shapes = {tensor.name: tensor.shape for tensor in spec.floats}
    parts = []
    for tensor in spec.floats:
        shape = tensor.shape
        if len(shape) < 2:
            shape = shapes.get(tensor.name.rpartition(".")[0] + ".weight", ())
        fan_in = prod(shape[1:]) if len(shape) > 1 else 1
        parts.append(torch.full((prod(tensor.shape),), max(fan_in, 1) ** -0.5))
    return torch.cat(parts)
