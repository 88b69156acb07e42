"""Imagined examples: inputs and labels that a policy makes up, and the move that a network's loss on them suggests.

A policy that only reads weights has to know from its trunk what each layer of a net should become, and knows nothing of a
depth that it never saw. What a loss asks of a weight, the chain rule says at any depth. So a policy may learn examples, some
for every number of steps left (dataset distillation, Wang et al. 2018, arXiv 1811.10959), and move each tensor along the
orthogonalised gradient of the net's loss on them (Muon, Jordan et al. 2024), as far as it has learned for weights of that kind.
They begin as noise, are learned like every other parameter, and are part of the policy's file: synthesis still reads no data.
"""

import torch
from torch import Tensor, nn

from synthnet.engine import Network, cross_entropy
from synthnet.errors import InputError
from synthnet.policy.tokens import TokenLayout

GAIN = 10.0  # parameters are kept a tenth of what they stand for: the learning rates of trunks are slow for pixels and rates
FIRST_RATE = 0.1  # how far a first step goes, in scale units
CHUNK_BYTES = 1 << 26  # of activations at a time
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the quintic of Jordan et al. 2024, five times


class Imagined(nn.Module):
    """`count` examples for each number of steps left up to k_max, and how far to go for each kind of weight."""

    def __init__(self, count: int, k_max: int, n_kinds: int, net: Network):
        super().__init__()
        n_inputs, n_classes = io_sizes(net)
        self.images = nn.Parameter(torch.randn(k_max, count, n_inputs) / GAIN)
        certain = nn.functional.one_hot(torch.arange(count) % n_classes, n_classes).float()
        self.labels = nn.Parameter(4 / GAIN * certain.expand(k_max, -1, -1).clone())
        self.keep = nn.Parameter(torch.zeros(1, k_max, n_kinds))
        self.rate = nn.Parameter(torch.full((1, k_max, n_kinds), FIRST_RATE).log() / GAIN)

    def forward(self, scaled: Tensor, scale: Tensor, steps_left: Tensor, net: Network, layout: TokenLayout) -> Tensor:
        """The move [net weights] of weights [net weights], both in scale units, at steps left [net]."""
        turn = steps_left.clamp(1, self.images.shape[0]) - 1
        outputs, _ = net.activations(self.images[0])
        size = max(1, int(CHUNK_BYTES // (4 * self.images.shape[1] * outputs)))  # nets at a time
        parts = zip((scaled * scale).split(size), turn.split(size), strict=True)
        along = torch.cat([self._directions(weights, turns, net) for weights, turns in parts])
        keep, rate = ((GAIN * part[0]).exp()[turn][:, layout.column_of] for part in (self.keep, self.rate))
        return (keep - 1) * scaled - rate * along

    def _directions(self, weights: Tensor, turn: Tensor, net: Network) -> Tensor:
        """The gradient on the examples of each net's turn [net weights], every tensor orthogonalised and of unit RMS."""
        images, labels = GAIN * self.images[turn], (GAIN * self.labels[turn]).softmax(-1)
        learning = torch.is_grad_enabled()
        with torch.enable_grad():
            point = weights if weights.requires_grad else weights.detach().requires_grad_()
            loss = cross_entropy(net.logits(point, images, own_inputs=True), labels).sum()
            (slope,) = torch.autograd.grad(loss, point, create_graph=learning)
        return torch.cat([unit(tensor).flatten(1) for tensor in net.spec.unflatten(slope).values()], 1)


def io_sizes(net: Network) -> tuple[int, int]:
    """Numbers of inputs and classes. Raises: InputError where the module does not say them."""
    sizes = getattr(net.module, "n_inputs", None), getattr(net.module, "n_classes", None)
    if None in sizes:
        raise InputError(
            f"imagined examples need an architecture of ours: {type(net.module).__name__} says no n_inputs, n_classes"
        )
    return sizes


def unit(slopes: Tensor) -> Tensor:
    """Each net's tensor [net *shape] with root mean square 1; of matrices and kernels, after orthogonalisation."""
    if slopes.ndim > 2:
        slopes = orthogonalised(slopes.flatten(2)).view_as(slopes)
    rest = tuple(range(1, slopes.ndim))
    return slopes / ((slopes.square().mean(rest, keepdim=True) + 1e-20).sqrt() + 1e-8)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices [matrix out in] with their singular values brought near 1 (Newton-Schulz), which turns with any rotation, so
    with any permutation of units."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / ((x.square().sum((-2, -1), keepdim=True) + 1e-20).sqrt() + 1e-8)
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
