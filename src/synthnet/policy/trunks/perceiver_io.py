"""Perceiver IO over unit tokens (Jaegle et al. 2022, arXiv 2107.14795), with edge blocks between hidden groups.

Latents read the unit tokens, think among themselves, and every unit asks them what to do, its own content being the query and
kept as a residual: a few latents cannot carry what each unit needs of itself. The cost is linear in the number of units.
`rounds` of read, think and ask; edges exchange with their two units in each. No position is used, so the trunk is
permutation-equivariant and serves any width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synthnet.policy.queries import build_queries
from synthnet.policy.tokens import TokenLayout, Tokens
from synthnet.policy.trunks._attention import Attention, Condition, FilmNorm
from synthnet.policy.trunks._edges import Edges
from synthnet.policy.trunks._units import SIZE, EdgeExchange, UnitConfig, UnitTrunk, check, edge_columns, feed_forward
from synthnet.settings import setting


@dataclass
class Config(UnitConfig):
    name: str = "perceiver_io"
    latents: int = setting(16, "how many", SIZE)
    rounds: int = setting(2, "of read, think and ask", SIZE)
    queries: str = setting("content", "what a unit asks with, a file of `queries/`")


class Layer(nn.Module):
    """Pre-norm attention of tokens over a set (without one: among themselves) and a feed-forward, both added to the tokens.
    With `asked` [net token dim] the attention asks with those queries instead of the tokens."""

    def __init__(self, config: Config):
        super().__init__()
        dim = config.dim
        self.norm, self.seen_norm = (FilmNorm(dim, config.condition, config.code) for _ in range(2))
        self.attention = Attention(dim, config.heads)
        self.ffn_norm, self.ffn = FilmNorm(dim, config.condition, config.code), feed_forward(config)

    def forward(
        self,
        tokens: Tensor,
        condition: Condition,
        seen: Tensor | None = None,
        seen_condition: Condition | None = None,
        asked: Tensor | None = None,
    ) -> Tensor:
        x = self.norm(tokens if asked is None else asked, condition)
        tokens = tokens + self.attention(x, x if seen is None else self.seen_norm(seen, seen_condition))
        return tokens + self.ffn(self.ffn_norm(tokens, condition))


class Round(nn.Module):
    def __init__(self, config: Config, layout: TokenLayout):
        super().__init__()
        self.queries = build_queries(config.queries, config.dim, layout.descriptors.shape[1])
        self.exchange = EdgeExchange(config, layout) if edge_columns(layout) else None
        self.read, self.ask = Layer(config), Layer(config)
        self.think = nn.ModuleList([Layer(config)])

    def forward(
        self,
        units: Tensor,
        edges: Edges,
        latents: Tensor,
        layout: TokenLayout,
        condition: Condition,
        conditions: list[Condition],
    ) -> tuple[Tensor, Tensor]:
        everywhere = condition._replace(place=None)
        if layout.edges:
            units = self.exchange(units, edges, layout, conditions)
        latents = self.read(latents, everywhere, units, condition)
        for layer in self.think:
            latents = layer(latents, everywhere)
        asked = self.queries(units, layout.descriptors.to(units))
        return self.ask(units, condition, latents, everywhere, asked), latents


class PerceiverIO(UnitTrunk):
    def __init__(self, config: Config, layout: TokenLayout, k_max: int):
        super().__init__(config, layout, k_max)
        self.latents = nn.Parameter(0.5 * torch.randn(1, config.latents, config.dim))
        self.rounds = nn.ModuleList(Round(config, layout) for _ in range(config.rounds))

    def think(
        self, tokens: Tokens, layout: TokenLayout, condition: Condition, conditions: list[Condition]
    ) -> tuple[Tensor, Edges]:
        units, edges = self.enter(tokens, layout, conditions)
        latents = self.latents.expand(len(units), -1, -1)
        for part in self.rounds:
            units, latents = part(units, edges, latents, layout, condition, conditions)
        return units, edges


def build(config: Config, layout: TokenLayout, k_max: int) -> nn.Module:
    check(config)
    return PerceiverIO(config, layout, k_max)
