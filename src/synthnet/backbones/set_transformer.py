"""Set Transformer over unit tokens (Lee et al. 2019, arXiv 1810.00825), pre-norm, with edge blocks between hidden groups.

Each block: edges read their two units; units read the means of their edges; units attend to each other; feed-forward.
Everything is shared over units and edges and no position is used, so the trunk is permutation-equivariant and serves any width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synthnet.backbones._attention import Attention, FeedForward, FilmNorm, StepsLeft
from synthnet.errors import InputError, at_least
from synthnet.tokens import TokenLayout, Tokens


@dataclass
class Config:
    """`ffn`: hidden width of the feed-forwards as a multiple of `dim`. `condition`: width of the steps-left embedding that
    FiLM reads. `inducing`: 0 for full self-attention (SAB), else the number of inducing points (ISAB, linear in tokens)."""

    name: str = "set_transformer"
    dim: int = 160
    depth: int = 4
    heads: int = 4
    ffn: int = 2
    summary: int = 4
    inducing: int = 0
    edge_dim: int = 32
    condition: int = 160


class EdgeExchange(nn.Module):
    """Edges update from their two units, then units from the means of their incoming and outgoing edges."""

    def __init__(self, dim: int, edge_dim: int):
        super().__init__()
        self.to_out, self.to_into = nn.Linear(dim, edge_dim), nn.Linear(dim, edge_dim)
        self.norm = nn.LayerNorm(edge_dim)
        self.mix = FeedForward(edge_dim, 2 * edge_dim)
        self.pool = nn.Linear(2 * edge_dim, dim)

    def forward(self, units: Tensor, edges: list[Tensor], layout: TokenLayout) -> tuple[Tensor, list[Tensor]]:
        pooled = units.new_zeros(*units.shape[:2], 2, edges[0].shape[-1])
        updated = []
        for block, edge in zip(layout.edges, edges, strict=True):
            ends = self.to_out(units[:, block.out]).unsqueeze(2) + self.to_into(units[:, block.into]).unsqueeze(1)
            edge = edge + self.mix(self.norm(edge + ends))
            pooled[:, block.out, 0] = edge.mean(2)
            pooled[:, block.into, 1] = edge.mean(1)
            updated.append(edge)
        return units + self.pool(pooled.flatten(2)), updated


class Block(nn.Module):
    def __init__(self, config: Config, has_edges: bool):
        super().__init__()
        dim = config.dim
        self.exchange = EdgeExchange(dim, config.edge_dim) if has_edges else None
        self.attention_norm, self.attention = FilmNorm(dim, config.condition), Attention(dim, config.heads)
        self.inducing = nn.Parameter(torch.randn(1, config.inducing, dim)) if config.inducing else None
        self.gather = Attention(dim, config.heads) if config.inducing else None
        self.ffn_norm, self.ffn = FilmNorm(dim, config.condition), FeedForward(dim, config.ffn * dim)

    def forward(
        self, units: Tensor, edges: list[Tensor], layout: TokenLayout, condition: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        if edges:
            units, edges = self.exchange(units, edges, layout)
        x = self.attention_norm(units, condition)
        seen = x if self.inducing is None else self.gather(self.inducing.expand(len(x), -1, -1), x)
        units = units + self.attention(x, seen)
        return units + self.ffn(self.ffn_norm(units, condition)), edges


class SetTransformer(nn.Module):
    def __init__(self, config: Config, layout: TokenLayout, k_max: int):
        super().__init__()
        dim, kinds = config.dim, [key for key in layout.vocabulary if key.startswith("edge")]
        self.embed = nn.Linear(layout.n_features, dim)
        self.describe = nn.Linear(layout.descriptors.shape[1], dim)
        self.summary = nn.Parameter(0.02 * torch.randn(1, config.summary, dim))
        self.steps_left = StepsLeft(k_max, config.condition)
        self.blocks = nn.ModuleList(Block(config, bool(kinds)) for _ in range(config.depth))
        self.norm, self.head = FilmNorm(dim, config.condition), _zero(nn.Linear(dim, layout.n_features))
        if kinds:
            width = config.edge_dim
            self.edge_describe = nn.Linear(layout.edge_descriptors.shape[1], width)
            self.edge_embed = nn.ModuleDict({kind: nn.Linear(layout.vocabulary[kind], width) for kind in kinds})
            self.edge_norm = nn.LayerNorm(width)
            self.edge_head = nn.ModuleDict({kind: _zero(nn.Linear(width, layout.vocabulary[kind])) for kind in kinds})

    def forward(self, tokens: Tokens, layout: TokenLayout, steps_left: Tensor) -> Tokens:
        units = self.embed(tokens.units) + self.describe(layout.descriptors)
        units = torch.cat([units, self.summary.expand(len(units), -1, -1)], dim=1)
        edges = [
            self.edge_embed[block.kind](edge) + self.edge_describe(where)
            for block, edge, where in zip(layout.edges, tokens.edges, layout.edge_descriptors, strict=True)
        ]
        condition = self.steps_left(steps_left)
        for block in self.blocks:
            units, edges = block(units, edges, layout, condition)
        out = self.head(self.norm(units[:, : layout.n_tokens], condition))
        heads = (self.edge_head[block.kind] for block in layout.edges)
        return Tokens(out, tuple(head(self.edge_norm(edge)) for head, edge in zip(heads, edges, strict=True)))


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def build(config: Config, layout: TokenLayout, k_max: int) -> nn.Module:
    at_least(1, "backbone", config, "dim", "depth", "heads", "ffn", "edge_dim", "summary", "condition")
    at_least(0, "backbone", config, "inducing")
    if config.dim % config.heads:
        raise InputError(f"backbone.dim must be a multiple of backbone.heads, got {config.dim} and {config.heads}")
    return SetTransformer(config, layout, k_max)
