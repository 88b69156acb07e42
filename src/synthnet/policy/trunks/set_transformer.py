"""Set Transformer over unit tokens (Lee et al. 2019, arXiv 1810.00825), pre-norm, with edge blocks between hidden groups.

Each block: edges read their two units; units read the means of their edges; units attend to each other; feed-forward.
Everything is shared over units and edges and no position is used, so the trunk is permutation-equivariant and serves any width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthnet.policy.tokens import TokenLayout, Tokens
from synthnet.policy.trunks._attention import Attention, Condition, FilmNorm
from synthnet.policy.trunks._edges import Edges
from synthnet.policy.trunks._units import SIZE, EdgeExchange, UnitConfig, UnitTrunk, check, edge_columns, feed_forward
from synthnet.settings import setting

SUMMARY = 4  # tokens that belong to no unit


@dataclass
class Config(UnitConfig):
    name: str = "set_transformer"
    depth: int = setting(4, "blocks", SIZE)
    inducing: int = setting(0, "points of ISAB, linear in tokens (0: full self-attention, SAB)", (0, 1 << 20))


class Block(nn.Module):
    def __init__(self, config: Config, layout: TokenLayout):
        super().__init__()
        dim = config.dim
        self.exchange = EdgeExchange(config, layout) if edge_columns(layout) else None
        self.attention_norm, self.attention = FilmNorm(dim, config.condition, config.code), Attention(dim, config.heads)
        self.inducing = nn.Parameter(torch.randn(1, config.inducing, dim)) if config.inducing else None
        self.gather = Attention(dim, config.heads) if config.inducing else None
        self.ffn_norm, self.ffn = FilmNorm(dim, config.condition, config.code), feed_forward(config)

    def forward(
        self, units: Tensor, edges: Edges, layout: TokenLayout, condition: Condition, conditions: list[Condition]
    ) -> Tensor:
        if layout.edges:
            units = self.exchange(units, edges, layout, conditions)
        x = self.attention_norm(units, condition)
        seen = x if self.inducing is None else self.gather(self.inducing.expand(len(x), -1, -1), x)
        units = units + self.attention(x, seen)
        return units + self.ffn(self.ffn_norm(units, condition))


class SetTransformer(UnitTrunk):
    def __init__(self, config: Config, layout: TokenLayout, k_max: int):
        super().__init__(config, layout, k_max)
        self.summary = nn.Parameter(0.02 * torch.randn(1, SUMMARY, config.dim))
        self.blocks = nn.ModuleList(Block(config, layout) for _ in range(config.depth))

    def think(
        self, tokens: Tokens, layout: TokenLayout, condition: Condition, conditions: list[Condition]
    ) -> tuple[Tensor, Edges]:
        units, edges = self.enter(tokens, layout, conditions)
        units = torch.cat([units, self.summary.expand(len(units), -1, -1)], dim=1)
        if condition.place is not None:
            condition = condition._replace(place=F.pad(condition.place, (0, 0, 0, self.summary.shape[1])))
        for block in self.blocks:
            units = block(units, edges, layout, condition, conditions)
        return units[:, : layout.n_tokens], edges


def build(config: Config, layout: TokenLayout, k_max: int) -> nn.Module:
    check(config)
    return SetTransformer(config, layout, k_max)
