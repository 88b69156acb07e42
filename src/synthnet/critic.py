"""The early-stop critic: from the weights alone, how good a net is now and would be after k more steps; so `--steps auto`
needs no data. It reads what the trunk makes of a net, and is trained by `synthnet critic` on measured sequences."""

import torch
from torch import Tensor, nn


class Critic(nn.Module):
    """Features [net dim] -> predicted quality (half accuracy, half bounded loss) after 0, 1 … k_max more steps [net k_max + 1].

    What k steps add is predicted as a difference to now, so that a shift of the whole prediction stops no net.
    """

    def __init__(self, dim: int, hidden: int, k_max: int):
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU())
        self.now, self.gains = nn.Linear(hidden, 1), nn.Linear(hidden, k_max)
        for layer in (self.now, self.gains):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.layers(features)
        now = self.now(hidden)
        return torch.cat([now, now + self.gains(hidden)], -1)
