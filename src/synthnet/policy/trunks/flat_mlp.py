"""The original proof of concept's trunk: one MLP over the flat weights with an embedding of the step; sees every position.

It is tied to one architecture, and nothing in it respects the symmetry of the weights. Kept as a baseline.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synthnet.errors import InputError
from synthnet.policy.tokens import TokenLayout, Tokens
from synthnet.policy.trunks._attention import StepsLeft
from synthnet.settings import setting


@dataclass
class Config:
    name: str = "flat_mlp"
    hidden: int = setting(512, "width of its two hidden layers", (1, 1 << 20))
    step_dim: int = setting(64, "width of the embedding of the steps left", (1, 1 << 20))


class FlatMLP(nn.Module):
    def __init__(self, config: Config, layout: TokenLayout, k_max: int):
        super().__init__()
        if layout.edges:
            raise InputError("backbone flat_mlp reads flat weights: use tokens=chunk")
        self.shape = tuple(layout.unit_index.shape)
        width = layout.unit_index.numel()
        self.steps_left = StepsLeft(k_max, config.step_dim)
        self.layers = nn.Sequential(
            nn.Linear(width + config.step_dim, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.hidden), nn.ReLU()
        )
        self.head = nn.Linear(config.hidden, width)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tokens, layout: TokenLayout, steps_left: Tensor) -> Tokens:
        if tuple(layout.unit_index.shape) != self.shape:
            raise InputError(
                f"this flat_mlp policy serves nets of {self.shape} tokens x weights, got {tuple(layout.unit_index.shape)}"
            )
        x = torch.cat([tokens.units.flatten(1), self.steps_left(steps_left)], dim=-1)
        return Tokens(self.head(self.layers(x)).unflatten(1, self.shape), ())


def build(config: Config, layout: TokenLayout, k_max: int) -> nn.Module:
    return FlatMLP(config, layout, k_max)
