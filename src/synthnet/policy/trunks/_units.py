"""What trunks over unit and edge tokens share: the way in, the exchange between edges and units, the way out."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthnet.engine import STATISTICS
from synthnet.errors import InputError
from synthnet.policy.moe import MixtureKnobs, MixtureOfExperts
from synthnet.policy.tokens import TokenLayout, Tokens
from synthnet.policy.trunks._attention import Condition, FeedForward, FilmNorm, StepsLeft
from synthnet.policy.trunks._edges import Edges, Ends, HeldEdges, StreamedEdges, tiles
from synthnet.policy.trunks._graph import LayerGraph
from synthnet.settings import check_settings, setting

SIZE = (1, 1 << 20)  # bounds of widths and counts
BYTES = 3 * 4  # of a held state, while its successor is made: itself, the successor, and what lies between


@dataclass
class UnitConfig(MixtureKnobs):
    """Settings that trunks over unit tokens have in common. FiLM reads an embedding of the steps left and what else is told."""

    dim: int = setting(160, "of a unit's token; a multiple of heads", SIZE)
    heads: int = setting(4, "of attention", SIZE)
    ffn: int = setting(2, "hidden width of feed-forwards, as a multiple of dim", SIZE)
    experts: int = setting(0, "of each feed-forward (0: dense)", (0, 1 << 20))
    top_k: int = setting(1, "experts that a token uses", SIZE)
    balance_by: str = setting("pass", "experts are balanced within each pass, or over time", choices=("pass", "time"))
    edge_dim: int = setting(32, "of an edge's state", SIZE)
    condition: int = setting(64, "width of what FiLM reads", SIZE)
    place: bool = setting(True, "FiLM is told where a token stands: depth, width of its layer")
    data: bool = setting(False, "FiLM is told statistics of the data set, which the policy's file keeps")
    graph: int = setting(0, "rounds of a small encoder of the layer graph, told to FiLM (0: none)", (0, 1 << 20))
    spec: int | None = setting(None, "numbers of a spec that FiLM is told (null: all that the task has; 0: none)", (0, 1024))
    siblings: bool = setting(False, "units hear those that a net treats with them, even if the first net trained on has none")
    code: int = setting(0, "dims of the latent code of a policy whose actions are codes (0: actions are weights)", (0, 1 << 20))


def check(config: UnitConfig) -> None:
    """Refuse settings that cannot be built."""
    check_settings("backbone", config)
    if config.dim % config.heads:
        raise InputError(f"backbone.dim must be a multiple of backbone.heads, got {config.dim} and {config.heads}")


def feed_forward(config: UnitConfig) -> nn.Module:
    """Dense, or a mixture of experts with as many active weights per token."""
    if not config.experts:
        return FeedForward(config.dim, config.ffn * config.dim)
    return MixtureOfExperts(
        config.dim,
        config.ffn * config.dim,
        config.experts,
        config.top_k,
        config.temperature,
        config.balance,
        config.balance_by == "time",
    )


class EdgeExchange(nn.Module):
    """Edges update from their two units, then units from the means of their incoming and outgoing edges, and of the units that
    the net treats together with them, where the nets it is built for have such."""

    def __init__(self, config: UnitConfig, layout: TokenLayout):
        super().__init__()
        dim, edge_dim = config.dim, config.edge_dim
        self.to_out, self.to_into = nn.Linear(dim, edge_dim), nn.Linear(dim, edge_dim)
        self.norm = FilmNorm(edge_dim, config.condition, config.code)
        self.mix = FeedForward(edge_dim, 2 * edge_dim)
        self.pool = nn.Linear(2 * edge_dim, dim)
        together = config.siblings or layout.siblings is not None
        self.together = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim)) if together else None

    def forward(self, units: Tensor, edges: Edges, layout: TokenLayout, conditions: list[Condition]) -> Tensor:
        """The units [net token dim] after the exchange; the edges keep theirs."""
        pooled = units.new_zeros(*units.shape[:2], 2, self.to_out.out_features)
        ends = [Ends(self.to_out(units[:, block.out]), self.to_into(units[:, block.into])) for block in layout.edges]

        def update(edge: Tensor, given: Tensor, number: int) -> Tensor:
            return edge + self.mix(self.norm(edge + given, conditions[number]))

        for number, block in enumerate(layout.edges):
            total = 0.0
            for tile, rows in enumerate(tiles(block)):
                edge = update(edges.read(number, tile, rows), ends[number].tile(rows), number)
                pooled[:, block.out.start + rows.start : block.out.start + rows.stop, 0] += edge.mean(2)
                total = total + edge.sum(1)
                edges.keep(number, tile, edge)
            pooled[:, block.into, 1] += total / block.index.shape[0]
        edges.exchanged(update, ends)
        units = units + self.pool(pooled.flatten(2))
        if self.together is None or layout.siblings is None:
            return units
        return units + F.pad(self._of_siblings(units, layout.siblings), (0, 0, 0, units.shape[1] - layout.n_tokens))

    def _of_siblings(self, units: Tensor, siblings: Tensor) -> Tensor:
        """The mean of each token's siblings, itself among them, after `together` [net token dim]."""
        told = self.together(units[:, : len(siblings)])
        counts = torch.bincount(siblings, minlength=len(siblings)).clamp_min(1).to(told)
        mean = torch.zeros_like(told).index_add(1, siblings, told) / counts[:, None]
        return mean.index_select(1, siblings)


class UnitTrunk(nn.Module):
    """Base of trunks over unit and edge tokens: embeds what comes in, and heads (zero at first) for what goes out."""

    def __init__(self, config: UnitConfig, layout: TokenLayout, k_max: int):
        super().__init__()
        dim, width = config.dim, config.edge_dim
        self.edge_columns = edge_columns(layout)
        self.embed = nn.Linear(layout.n_features, dim)
        self.describe = nn.Linear(layout.descriptors.shape[1], dim)
        self.steps_left = StepsLeft(k_max, config.condition)
        self.place = nn.Linear(layout.descriptors.shape[1], config.condition) if config.place else None
        self.data = _zero(nn.Linear(STATISTICS, config.condition)) if config.data else None
        self.spec = FeedForward(config.spec, config.condition, config.condition) if config.spec else None
        self.graph = LayerGraph(layout.descriptors.shape[1], config.condition, config.graph) if config.graph else None
        self.norm, self.head = FilmNorm(dim, config.condition, config.code), _zero(nn.Linear(dim, layout.n_features))
        if self.edge_columns:
            n_columns = sum(layout.vocabulary[kind] for kind in self.edge_columns)
            self.edge_describe = nn.Linear(layout.edge_descriptors.shape[1], width)
            self.edge_embed = nn.Linear(n_columns, width)
            self.edge_place = nn.Linear(layout.edge_descriptors.shape[1], config.condition) if config.place else None
            self.edge_norm = FilmNorm(width, config.condition, config.code)
            self.edge_head = _zero(nn.Linear(width, n_columns))
        self.code_head = _zero(nn.Linear(dim, config.code)) if config.code else None
        self.held_bytes = math.inf

    def enter(self, tokens: Tokens, layout: TokenLayout, conditions: list[Condition]) -> tuple[Tensor, Edges]:
        """Units [net token dim], and the edges: held where that fits into `held_bytes`, else streamed."""
        units = self.embed(tokens.units) + self.describe(layout.descriptors.to(tokens.units))
        places = self.edge_describe(layout.edge_descriptors.to(tokens.units)) if layout.edges else ()

        def tile(number: int, rows: slice) -> Tensor:
            columns = self.edge_embed.weight[:, self.edge_columns[layout.edges[number].kind]]
            return F.linear(tokens.edges[number][:, rows], columns, self.edge_embed.bias) + places[number]

        def leave(edge: Tensor, number: int) -> Tensor:
            columns = self.edge_columns[layout.edges[number].kind]
            return F.linear(
                self.edge_norm(edge, conditions[number]), self.edge_head.weight[columns], self.edge_head.bias[columns]
            )

        n_edges = sum(block.index.shape[0] * block.index.shape[1] for block in layout.edges)
        if n_edges * len(units) * self.edge_embed.out_features * BYTES > self.held_bytes if layout.edges else False:
            return units, StreamedEdges(tile, leave, sum(isinstance(module, EdgeExchange) for module in self.modules()))
        states = [[tile(number, rows) for rows in tiles(block)] for number, block in enumerate(layout.edges)]
        return units, HeldEdges(states, leave)

    def conditions(
        self, layout: TokenLayout, steps_left: Tensor, code: Tensor | None = None, spec: Tensor | None = None
    ) -> tuple[Condition, list[Condition]]:
        """What FiLM reads for the units, and for each block of edges. spec [net number]: between −1 and 1."""
        steps = self.steps_left(steps_left)
        if self.spec is not None:
            steps = steps + self.spec(spec.to(steps))
        if self.data is not None:
            steps = steps + self.data(layout.statistics.to(steps))
        if self.graph is not None:
            steps = steps + self.graph(layout)
        if self.place is None:
            return Condition(steps, None, code), [Condition(steps, None, code)] * len(layout.edges)
        edges = [Condition(steps, self.edge_place(where.to(steps)), code) for where in layout.edge_descriptors]
        return Condition(steps, self.place(layout.descriptors.to(steps)), code), edges

    def think(
        self, tokens: Tokens, layout: TokenLayout, condition: Condition, conditions: list[Condition]
    ) -> tuple[Tensor, Edges]:
        """Units [net token dim] and edges after all of the trunk's blocks."""
        raise NotImplementedError

    def forward(
        self, tokens: Tokens, layout: TokenLayout, steps_left: Tensor, code: Tensor | None = None, spec: Tensor | None = None
    ) -> Tokens:
        condition, conditions = self.conditions(layout, steps_left, code, spec)
        units, edges = self.think(tokens, layout, condition, conditions)
        made = (edges.left(number) for number in range(len(layout.edges)))
        return Tokens(
            self.head(self.norm(units, condition)), tuple(part[0] if len(part) == 1 else torch.cat(part, 1) for part in made)
        )

    def features(self, tokens: Tokens, layout: TokenLayout, steps_left: Tensor, spec: Tensor | None = None) -> Tensor:
        """What the trunk makes of a whole net [net dim]: the mean over its units, normed."""
        condition, conditions = self.conditions(layout, steps_left, None, spec)
        units, _ = self.think(tokens, layout, condition, conditions)
        return self.norm(units, condition).mean(1)


def edge_columns(layout: TokenLayout) -> dict[str, slice]:
    """Where the numbers of each kind of edge (a single weight, a 3x3 kernel …) stand among the columns that all edges share: a
    kernel of another shape reads other columns of one embedding, as a unit does."""
    columns, start = {}, 0
    for kind, size in layout.vocabulary.items():
        if kind.startswith("edge"):
            columns[kind], start = slice(start, start + size), start + size
    return columns


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
