"""Linear mode connectivity: how much the loss rises on the straight line between two nets (Frankle et al. 2020, arXiv
1912.05671), with the barrier measured above the line between the ends (Entezari et al. 2022, arXiv 2110.06296)."""

import torch
from torch import Tensor

from synthnet.engine import Network, score
from synthnet.nets import Symmetry

POINTS = 11
PAIRS = 16  # of seeds


def neighbours(symmetry: Symmetry, nets: Tensor, most: int = PAIRS) -> tuple[Tensor, Tensor]:
    """Pairs of nets of different seeds [pair weights] each: 0 and 1, 2 and 3 …, the first of each aligned to the second."""
    one, other = nets[0::2][:most], nets[1::2][:most]
    pairs = zip(one[: len(other)], other, strict=True)
    return torch.stack([symmetry.align(a, b)[0] for a, b in pairs]).to(nets), other


def path_losses(network: Network, one: Tensor, other: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy [pair point] at evenly spaced points of the line from nets `one` to `other` [pair weights], in
    nats."""
    shares = torch.linspace(0, 1, POINTS).to(one)
    nets = torch.lerp(one.unsqueeze(1), other.unsqueeze(1), shares.view(1, -1, 1))
    return score(network, nets.flatten(0, 1), inputs, labels)[1].view(len(one), POINTS)


def barrier(losses: Tensor) -> Tensor:
    """How far the losses [pair point] rise above the straight line between their ends, at most: [pair], never below 0."""
    shares = torch.linspace(0, 1, losses.shape[1], dtype=losses.dtype)
    line = torch.lerp(losses[:, :1], losses[:, -1:], shares)
    return (losses - line).amax(1).clamp_min(0)
