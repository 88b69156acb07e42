"""The early-stop critic: from the weights alone, how far a net stays behind its best after k more steps; so `--steps auto`
needs no data. It reads what the trunk makes of a net, and is trained by `synthnet critic` on measured sequences."""

from torch import Tensor, nn

CAP = 0.05  # in quality: all that lags behind the best k by more counts the same, so that small differences are what is learned


class Critic(nn.Module):
    """Features [net dim] -> predicted lag behind the best k after 0, 1 … k_max more steps [net k_max + 1], as a share of
    CAP."""

    def __init__(self, dim: int, hidden: int, k_max: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, k_max + 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


def lag(quality: Tensor) -> Tensor:
    """What the critic learns: how far each quality [net k] lies behind the best of its net, capped, as a share of CAP."""
    return (quality.amax(-1, keepdim=True) - quality).clamp(max=CAP) / CAP


def best_k(lags: Tensor, margin: float = 0.04) -> Tensor:
    """The smallest k [net] whose lag [net k] is within `margin` of the smallest: by default 0.002 in quality."""
    return (lags <= lags.amin(-1, keepdim=True) + margin).int().argmax(-1)
