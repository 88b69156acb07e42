"""Parts of attention trunks: multi-head attention, feed-forward, and FiLM conditioning on the number of steps left."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention of queries [net query dim] over a set [net token dim] (Vaswani et al. 2017); no dropout."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key_value, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        q = self._split(self.query(queries))
        k, v = (self._split(part) for part in self.key_value(tokens).chunk(2, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Sequential):
    def __init__(self, dim: int, hidden: int, dim_out: int | None = None):
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim_out or dim))


class Condition(NamedTuple):
    """What FiLM reads: the steps left, embedded [net dim]; where it is told, each token's place in the net [token dim]; and the
    latent code [net code dim] of a policy whose actions are codes."""

    steps: Tensor
    place: Tensor | None = None
    code: Tensor | None = None


class FilmNorm(nn.Module):
    """Layer norm of [net … token dim] whose scale and shift depend on a condition (FiLM, Perez et al. 2018); starts as a plain
    norm. A latent code moves both through a fixed random matrix."""

    def __init__(self, dim: int, condition_dim: int, code_dim: int = 0):
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.film = nn.Linear(condition_dim, 2 * dim)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)
        if code_dim:
            self.register_buffer("code_map", torch.randn(code_dim, 2 * dim) * code_dim**-0.5)

    def forward(self, x: Tensor, condition: Condition) -> Tensor:
        film = self.film(condition.steps)
        if condition.code is not None:
            film = film + condition.code @ self.code_map
        film = film.view(len(film), *[1] * (x.ndim - 2), -1)
        if condition.place is not None:
            film = film + F.linear(condition.place, self.film.weight)
        scale, shift = film.unflatten(-1, (2, -1)).unbind(-2)
        return torch.addcmul(shift, self.norm(x), 1 + scale)


class StepsLeft(nn.Module):
    """Embedding [net dim] of the number of synth steps left, 1..k_max; larger numbers read as k_max."""

    def __init__(self, k_max: int, dim: int):
        super().__init__()
        self.k_max = k_max
        self.table = nn.Embedding(k_max, dim)

    def forward(self, steps_left: Tensor) -> Tensor:
        return self.table(steps_left.clamp(1, self.k_max) - 1)
