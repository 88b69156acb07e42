"""How much signal a GRPO update carries: agreement of two half-batch gradients, and reward against its minibatch noise."""

import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from synthnet.policy import Policy

WINDOW = 8  # measurements of the half-batch cosine after which a run without any agreement is called noise


@dataclass
class Agreement:
    """The last half-batch cosines of a run."""

    cosines: deque = field(default_factory=lambda: deque(maxlen=WINDOW))

    def measure(self, cosine: float, n_rollouts: int) -> dict[str, float | None]:
        """The cosine of this update's experience, to log; warns once when a window of them shows no agreement."""
        self.cosines.append(cosine)
        values = torch.tensor(list(self.cosines))
        if len(values) == WINDOW and values.mean() < 2 * values.std() / WINDOW**0.5:
            warnings.warn(
                f"half-batch gradients agree no more than chance (cosine {values.mean():.3f}): this run is noise; "
                "raise grpo.prompts or reward.batch, or let `synthnet calibrate` choose sigma",
                stacklevel=2,
            )
            self.cosines.clear()
        dimension = effective_dimension(cosine, n_rollouts)
        return {"signal/half_batch_cosine": cosine, "signal/effective_dimension": dimension}


def half_agreement(policy: Policy, seen, config, longest: int, loss: Callable) -> float:
    """Cosine between the reward gradients of two halves of an update's prompts (`experience.Experience`), by the estimator's
    loss; no part of the update itself."""
    alone = replace(config, beta=0.0)
    halves = [seen.half(half, config.num_generations) for half in (0, 1)]
    cosine = half_batch_cosine(policy, lambda half: loss(policy, None, seen.noisy, halves[half], alone, longest)[0])
    policy.auxiliary_loss()  # these forwards are not part of the update
    return cosine


def in_half(n_rollouts: int, group: int, half: int) -> Tensor:
    """Which rollouts are of half 0 or 1 of an update's prompts [R]: of every second one, `group` in a row of each."""
    return torch.arange(n_rollouts) // group % 2 == half


def half_batch_cosine(policy: Policy, loss_of) -> float:
    """Cosine between the policy gradients of two disjoint halves of an update's prompts; `loss_of(half)` is the loss of half
    0 or 1. Near 0, the update is noise."""
    wanted = [p for p in policy.parameters() if p.requires_grad]
    halves = []
    for half in (0, 1):
        found = torch.autograd.grad(loss_of(half), wanted, allow_unused=True)
        halves.append(torch.cat([g.flatten() for g in found if g is not None]))
    return torch.nn.functional.cosine_similarity(*halves, dim=0, eps=1e-30).item()


def effective_dimension(cosine: float, n_rollouts: int) -> float | None:
    """D_eff from n/D_eff = 2c/(1 − c) for the half-batch cosine c of n rollouts: how many rollouts a useful gradient takes.
    None where the halves do not agree at all."""
    return n_rollouts * (1 - cosine) / (2 * cosine) if cosine > 0 else None


def reward_snr(one: Tensor, other: Tensor) -> float:
    """Variance of rewards within a group that both halves of a reward minibatch agree on, over that of their mean's noise.

    Rewards of the same rollouts on either half [P G]: covariance within groups is signal, what remains is noise.
    """
    one, other = (x.double() - x.double().mean(1, keepdim=True) for x in (one, other))
    signal = (one * other).mean()
    noise = ((one - other) / 2).square().mean()
    return (signal / noise.clamp_min(1e-30)).item()
