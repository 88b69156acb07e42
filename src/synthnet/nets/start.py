"""Start weights: torch's default initialisation as a rule on names and shapes, so that scales never come from an input file."""

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from synthnet.nets.weights import WeightSpec


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


@lru_cache(maxsize=64)
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
