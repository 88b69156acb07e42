"""The policy's action: a diagonal Gaussian over the next weights, in scale units, one factor per weight.

Padding never enters: densities are summed over real weights only, within *action tokens* (a unit, an edge row, a chunk).
"""

from dataclasses import dataclass
from functools import cached_property
from math import log, pi, prod
from typing import NamedTuple

import torch
from torch import Tensor

from synthnet.engine import Network
from synthnet.policy.tokens import TokenLayout


class Alike(NamedTuple):
    """Where numbers stand that have no layout: all in one column and one token, as those of a code do."""

    column_of: Tensor
    token_of: Tensor
    n_action_tokens: int = 1


@dataclass(frozen=True)
class WeightGaussian:
    """Mean [net weights] and log standard deviations [column] of the next weights, both in scale units. What stands where (in
    which column, in which action token) is looked up once a density or a sample asks for it: whoever takes the mean needs none
    of it."""

    mean: Tensor
    log_sigmas: Tensor
    places: TokenLayout | Alike

    @property
    def n_tokens(self) -> int:
        """Action tokens."""
        return self.places.n_action_tokens

    @cached_property
    def log_sigma(self) -> Tensor:
        """Of each weight [weights]."""
        return self.log_sigmas.index_select(0, self.places.column_of)

    def sample(self, noise: Tensor) -> Tensor:
        """Mean plus sigma times standard normal noise [net weights]."""
        return self.mean + self.log_sigma.exp() * noise

    def log_prob_tokens(self, value: Tensor) -> Tensor:
        """Log-density of `value` [net weights], summed within each action token: [net token], in nats."""
        z = (value - self.mean) / self.log_sigma.exp()
        return self._token_sums(-0.5 * z.square() - self.log_sigma - 0.5 * log(2 * pi))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of `value` [net weights] over all weights: [net], in nats."""
        return self.log_prob_tokens(value).sum(-1)

    def kl_tokens(self, other: "WeightGaussian") -> Tensor:
        """KL(self ‖ other) in closed form, summed within each action token: [net token], in nats."""
        ratio = 2 * (self.log_sigma - other.log_sigma)
        shift = ((self.mean - other.mean) / other.log_sigma.exp()).square()
        return self._token_sums(0.5 * (ratio.exp() + shift - 1 - ratio))

    def kl(self, other: "WeightGaussian") -> Tensor:
        """KL(self ‖ other) over all weights: [net], in nats."""
        return self.kl_tokens(other).sum(-1)

    def token_sizes(self) -> Tensor:
        """Number of weights of each action token [token]."""
        return torch.bincount(self.places.token_of, minlength=self.n_tokens).to(self.mean)

    def _token_sums(self, values: Tensor) -> Tensor:
        sums = values.new_zeros(values.shape[0], self.n_tokens)
        return sums.index_add_(1, self.places.token_of, values)


def standard_noise(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal noise, drawn on the CPU so that every device sees the same numbers."""
    return torch.randn(shape, generator=generator).to(device)


LEAST_VARIANCE = 0.01  # of a norm, in scale units: below it a net would divide by nothing


def positive_variances(weights: Tensor, net: Network) -> Tensor:
    """Weights [net weights] whose running variances are positive, as they are elsewhere: the least is 0.01."""
    if not net.has_statistics:
        return weights
    names = [tensor.name for tensor in net.spec.floats]
    parts = weights.split([prod(tensor.shape) for tensor in net.spec.floats], dim=1)
    kept = (
        part.square().add(LEAST_VARIANCE**2).sqrt() if name.endswith("running_var") else part
        for name, part in zip(names, parts, strict=True)
    )
    return torch.cat(list(kept), dim=1)
