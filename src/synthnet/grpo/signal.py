"""How much signal a GRPO update carries: agreement of two half-batch gradients, and reward against its minibatch noise."""

import torch
from torch import Tensor

from synthnet.policy.policy import Policy


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

    Rewards of the same rollouts on either half [prompt rollout]: covariance within groups is signal, what remains is noise.
    """
    one, other = (x.double() - x.double().mean(1, keepdim=True) for x in (one, other))
    signal = (one * other).mean()
    noise = ((one - other) / 2).square().mean()
    return (signal / noise.clamp_min(1e-30)).item()
