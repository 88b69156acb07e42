"""Plain message passing over the parameter graph: the baseline that attention has to beat.

Each block: edges read their two units; units read the means of their edges and the mean of all units (what two units see of
each other through the inputs and classes they share); feed-forward. No attention (compare Deep Sets, Zaheer et al. 2017,
arXiv 1703.06114). Permutation-equivariant, serves any width.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from synthnet.policy.tokens import TokenLayout, Tokens
from synthnet.policy.trunks._attention import Condition, FilmNorm
from synthnet.policy.trunks._edges import Edges
from synthnet.policy.trunks._units import SIZE, EdgeExchange, UnitConfig, UnitTrunk, check, feed_forward
from synthnet.settings import setting


@dataclass
class Config(UnitConfig):
    name: str = "edge_exchange"
    depth: int = setting(4, "blocks", SIZE)


class EdgeExchangeTrunk(UnitTrunk):
    def __init__(self, config: Config, layout: TokenLayout, k_max: int):
        super().__init__(config, layout, k_max)
        dim, layers = config.dim, range(config.depth)
        self.exchanges = nn.ModuleList(EdgeExchange(config, layout) for _ in layers if self.edge_columns)
        self.mean_norms = nn.ModuleList(FilmNorm(dim, config.condition, config.code) for _ in layers)
        self.means = nn.ModuleList(nn.Sequential(nn.Linear(dim, dim), nn.GELU()) for _ in layers)
        self.spread = nn.ModuleList(nn.Linear(dim, dim) for _ in layers)
        self.norms = nn.ModuleList(FilmNorm(dim, config.condition, config.code) for _ in layers)
        self.ffns = nn.ModuleList(feed_forward(config) for _ in layers)

    def think(
        self, tokens: Tokens, layout: TokenLayout, condition: Condition, conditions: list[Condition]
    ) -> tuple[Tensor, Edges]:
        units, edges = self.enter(tokens, layout, conditions)
        for index in range(len(self.ffns)):
            if layout.edges:
                units = self.exchanges[index](units, edges, layout, conditions)
            mean = self.means[index](self.mean_norms[index](units, condition)).mean(1, keepdim=True)
            units = units + self.spread[index](mean)
            units = units + self.ffns[index](self.norms[index](units, condition))
        return units, edges


def build(config: Config, layout: TokenLayout, k_max: int) -> nn.Module:
    check(config)
    return EdgeExchangeTrunk(config, layout, k_max)
