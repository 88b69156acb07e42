"""Integer-quantised inference: a net whose weights are rounded to a few bits, as small hardware has them."""

import torch
from torch import Tensor

from synthnet.nets import WeightSpec


def rounded(spec: WeightSpec, nets: Tensor, bits: int | None, draw: torch.Generator | None = None) -> Tensor:
    """Weights [net weights] whose matrices and kernels lie on 2^bits − 1 even levels about zero, the outermost at the largest
    weight of each output unit; biases and norms stay as they are, and without bits everything does.

    To the nearest level; with `draw`, to either neighbour by chance, so that the mean is the weight itself (stochastic
    rounding, Gupta et al. 2015, arXiv 1502.02551).
    """
    if bits is None:
        return nets
    parts = []
    for tensor in spec.unflatten(nets).values():
        if tensor.ndim > 2:
            step = tensor.flatten(2).abs().amax(2).clamp_min(1e-12) / (2 ** (bits - 1) - 1)
            step = step.view(*step.shape, *(1,) * (tensor.ndim - 2))
            level = tensor / step
            level = level.round() if draw is None else (level + torch.rand(level.shape, generator=draw).to(level)).floor()
            tensor = level * step
        parts.append(tensor.flatten(1))
    return torch.cat(parts, 1)
