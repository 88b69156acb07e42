"""Nets made directly from training nets [net weights]: each function gives `n` of them, from an explicit generator.

Sources: noise, average and per-coordinate Gaussian are the baselines of Zeng et al. (arXiv 2506.07998); interpolation and soup
are done after alignment, where they are strongest.
"""

import torch
from torch import Generator, Tensor

from synthnet.nets import Symmetry

SOUP = 16


def _pick(training: Tensor, n: int, draw: Generator) -> Tensor:
    return training[torch.randint(len(training), (n,), generator=draw)]


def copies(training: Tensor, n: int, draw: Generator) -> Tensor:
    """Training nets as they are."""
    return _pick(training, n, draw).clone()


def noisy(training: Tensor, n: int, draw: Generator, scale: Tensor, level: float) -> Tensor:
    """Training nets plus Gaussian noise of `level` times the initial scale of each weight."""
    return _pick(training, n, draw) + level * scale * torch.randn(n, training.shape[1], generator=draw)


def permuted(training: Tensor, n: int, draw: Generator, symmetry: Symmetry) -> Tensor:
    """Training nets with their units shuffled: the same functions at a large raw distance."""
    return torch.stack([symmetry.permute(net, symmetry.random(draw)) for net in _pick(training, n, draw)])


def averages(training: Tensor, n: int, draw: Generator) -> Tensor:
    """Means of 16 training nets, not aligned."""
    size = min(SOUP, len(training))
    return torch.stack([training[torch.randperm(len(training), generator=draw)[:size]].mean(0) for _ in range(n)])


def gaussian(training: Tensor, n: int, draw: Generator) -> Tensor:
    """Each weight from its own normal distribution over the training nets."""
    return training.mean(0) + training.std(0) * torch.randn(n, training.shape[1], generator=draw)


def interpolations(training: Tensor, n: int, draw: Generator, symmetry: Symmetry) -> Tensor:
    """Midpoints of two training nets after alignment."""
    made = []
    for _ in range(n):
        one, other = training[torch.randperm(len(training), generator=draw)[:2]]
        made.append((symmetry.align(one, other)[0] + other) / 2)
    return torch.stack(made)


def soups(training: Tensor, n: int, draw: Generator, symmetry: Symmetry) -> Tensor:
    """Means of 16 training nets aligned to the first of them."""
    made = []
    for _ in range(n):
        members = training[torch.randperm(len(training), generator=draw)[: min(SOUP, len(training))]]
        made.append(torch.stack([members[0], *(symmetry.align(net, members[0])[0] for net in members[1:])]).mean(0))
    return torch.stack(made)


def retrieved(training: Tensor, training_starts: Tensor, starts: Tensor) -> Tensor:
    """For each start [net weights], the training net whose own start is the nearest: depends on the start, and is a copy."""
    return training[torch.cdist(starts, training_starts).argmin(1)].clone()


def constant(net: Tensor, n: int) -> Tensor:
    """One net [weights] for every seed."""
    return net.expand(n, -1).clone()
