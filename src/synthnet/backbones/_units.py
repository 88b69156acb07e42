"""What trunks over unit and edge tokens share: the way in, the exchange between edges and units, the way out."""

from dataclasses import dataclass

from torch import Tensor, nn

from synthnet.backbones._attention import FeedForward, FilmNorm, StepsLeft
from synthnet.backbones._moe import MixtureOfExperts
from synthnet.errors import InputError, at_least
from synthnet.tokens import TokenLayout, Tokens


@dataclass
class UnitConfig:
    """Settings that trunks over unit tokens have in common.

    ffn: hidden width of the feed-forwards as a multiple of `dim`. experts: 0 for a dense feed-forward, else that many, of which
    a token uses `top_k`, with the gate's `temperature` and the weights of its `balance` and `z` losses. condition: width of
    the steps-left embedding that FiLM reads.
    """

    dim: int = 160
    heads: int = 4
    ffn: int = 2
    experts: int = 0
    top_k: int = 1
    temperature: float = 1.0
    balance: float = 0.01
    z: float = 1e-3
    edge_dim: int = 32
    condition: int = 160


def check(config: UnitConfig, *counts: str) -> None:
    """Refuse settings that cannot be built; `counts` are further settings that must be at least 1."""
    at_least(1, "backbone", config, "dim", "heads", "ffn", "edge_dim", "condition", "top_k", *counts)
    at_least(0, "backbone", config, "experts", "balance", "z")
    if config.dim % config.heads:
        raise InputError(f"backbone.dim must be a multiple of backbone.heads, got {config.dim} and {config.heads}")


def feed_forward(config: UnitConfig) -> nn.Module:
    """Dense, or a mixture of experts with as many active weights per token."""
    if not config.experts:
        return FeedForward(config.dim, config.ffn * config.dim)
    return MixtureOfExperts(
        config.dim, config.ffn * config.dim, config.experts, config.top_k, config.temperature, config.balance, config.z
    )


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
            pooled[:, block.out, 0] += edge.mean(2)
            pooled[:, block.into, 1] += edge.mean(1)
            updated.append(edge)
        return units + self.pool(pooled.flatten(2)), updated


class UnitTrunk(nn.Module):
    """Base of trunks over unit and edge tokens: embeds what comes in, and heads (zero at first) for what goes out."""

    def __init__(self, config: UnitConfig, layout: TokenLayout, k_max: int):
        super().__init__()
        dim, width = config.dim, config.edge_dim
        kinds = [key for key in layout.vocabulary if key.startswith("edge")]
        self.has_edges = bool(kinds)
        self.embed = nn.Linear(layout.n_features, dim)
        self.describe = nn.Linear(layout.descriptors.shape[1], dim)
        self.steps_left = StepsLeft(k_max, config.condition)
        self.norm, self.head = FilmNorm(dim, config.condition), _zero(nn.Linear(dim, layout.n_features))
        if kinds:
            self.edge_describe = nn.Linear(layout.edge_descriptors.shape[1], width)
            self.edge_embed = nn.ModuleDict({kind: nn.Linear(layout.vocabulary[kind], width) for kind in kinds})
            self.edge_norm = nn.LayerNorm(width)
            self.edge_head = nn.ModuleDict({kind: _zero(nn.Linear(width, layout.vocabulary[kind])) for kind in kinds})

    def enter(self, tokens: Tokens, layout: TokenLayout) -> tuple[Tensor, list[Tensor]]:
        """Units [net token dim] and edges [net out in edge_dim] of each block."""
        units = self.embed(tokens.units) + self.describe(layout.descriptors.to(tokens.units))
        edges = [
            self.edge_embed[block.kind](edge) + self.edge_describe(where)
            for block, edge, where in zip(layout.edges, tokens.edges, layout.edge_descriptors.to(tokens.units), strict=True)
        ]
        return units, edges

    def leave(self, units: Tensor, edges: list[Tensor], layout: TokenLayout, condition: Tensor) -> Tokens:
        heads = (self.edge_head[block.kind] for block in layout.edges)
        out = self.head(self.norm(units[:, : layout.n_tokens], condition))
        return Tokens(out, tuple(head(self.edge_norm(edge)) for head, edge in zip(heads, edges, strict=True)))


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
