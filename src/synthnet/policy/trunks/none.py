"""No trunk: the policy is what else it has, its imagined examples. What they do alone, and nothing that knows a depth."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from synthnet.policy.tokens import TokenLayout, Tokens


@dataclass
class Config:
    name: str = "none"


class NoTrunk(nn.Module):
    def forward(self, tokens: Tokens, layout: TokenLayout, steps_left: Tensor) -> Tokens:
        return Tokens(torch.zeros_like(tokens.units), tuple(map(torch.zeros_like, tokens.edges)))


def build(config: Config, layout: TokenLayout, k_max: int) -> nn.Module:
    return NoTrunk()
