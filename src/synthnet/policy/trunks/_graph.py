"""A small encoder of the layer graph: what the net as a whole is like, told to every token through FiLM.

Nodes are the groups of tokens that share a place (a layer's units, each output), links the blocks of edges between them. A
token's own place says how deep and how wide its layer is; this says what the other layers are.
"""

import torch
from torch import Tensor, nn

from synthnet.policy.tokens import TokenLayout
from synthnet.policy.trunks._attention import FeedForward


class LayerGraph(nn.Module):
    """Rounds of messages along and against the links of the layer graph, then the mean over layers: [dim]; zero at first.

    Every node adds what it makes of itself and of the sums of its predecessors and successors (message passing, Gilmer et al.
    2017, arXiv 1704.01212).
    """

    def __init__(self, n_descriptors: int, dim: int, rounds: int):
        super().__init__()
        self.describe = nn.Linear(n_descriptors, dim)
        self.rounds = nn.ModuleList(FeedForward(3 * dim, dim, dim) for _ in range(rounds))
        self.out = nn.Linear(dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, layout: TokenLayout) -> Tensor:
        places, node_of = layout.descriptors.unique(dim=0, return_inverse=True)
        nodes = self.describe(places.to(self.out.weight))
        for layer in self.rounds:
            below, above = torch.zeros_like(nodes), torch.zeros_like(nodes)
            for block in layout.edges:
                out, into = node_of[block.out].unique(), node_of[block.into].unique()
                below = below.index_add(0, out, nodes[into].sum(0).expand(len(out), -1))
                above = above.index_add(0, into, nodes[out].sum(0).expand(len(into), -1))
            nodes = nodes + layer(torch.cat([nodes, below, above], dim=1))
        return self.out(nodes.mean(0))
