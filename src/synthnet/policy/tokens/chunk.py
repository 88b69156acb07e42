"""Chunk tokens: every tensor cut into pieces of fixed size. For any file, with no module at hand; not equivariant."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, log, pi, prod, sin

import torch
from torch import Tensor

from synthnet.errors import InputError
from synthnet.nets import Symmetry, TensorSpec, WeightSpec
from synthnet.policy.tokens import TokenLayout
from synthnet.settings import check_settings, setting

FOURIER_BANDS = 4


@dataclass
class Config:
    name: str = "chunk"
    size: int = setting(256, "floats a chunk (0: the whole net is one token, as a flat trunk reads it)", (0, 1 << 20))


def build(config: Config, spec: WeightSpec, symmetry: Symmetry | None, vocabulary: Mapping[str, int] | None) -> TokenLayout:
    check_settings("tokens", config)
    flat = spec.positions()
    if config.size == 0:
        unit_index, descriptors = flat[None], torch.zeros(1, 1)
    else:
        places, pieces, rows = spec.slices(), [], []
        for number, owner in enumerate(spec.floats):
            own = _pieces(flat[places[owner.name]], config.size, spec.n_weights)
            order = number / len(spec.floats)
            rows += [_descriptor(owner, order, (place + 0.5) / len(own)) for place in range(len(own))]
            pieces += own
        unit_index, descriptors = torch.stack(pieces), torch.tensor(rows)
    width = unit_index.shape[1]
    if vocabulary and dict(vocabulary) != {"chunk": width}:
        raise InputError(f"the policy reads chunks {dict(vocabulary)}, this network gives chunks of {width} weights")
    return TokenLayout(unit_index, descriptors, (), torch.zeros(0, 1), spec.n_weights, {"chunk": width})


def count(spec: WeightSpec, size: int = Config.size) -> int:
    """How many tokens a net of any size gives, without their tables."""
    return sum(-(-prod(tensor.shape) // size) for tensor in spec.floats)


def _pieces(positions: Tensor, size: int, padding: int) -> list[Tensor]:
    missing = -len(positions) % size
    return list(torch.cat([positions, positions.new_full((missing,), padding)]).split(size))


def _descriptor(tensor: TensorSpec, order: float, place: float) -> list[float]:
    """Role, rank, fan-in and fan-out (log), order of the tensor in the file, and Fourier features of both positions."""
    fan_out = tensor.shape[0] if tensor.shape else 1
    fan_in = 1
    for n in tensor.shape[1:]:
        fan_in *= n
    waves = [f(2**band * pi * x) for x in (order, place) for band in range(FOURIER_BANDS) for f in (sin, cos)]
    return [float(tensor.role == "buffer"), len(tensor.shape) / 4, log(fan_out) / 5, log(fan_in) / 5, order, place, *waves]
