"""Synth steps: W0 → W1 → … → WK. One function serves inference, validation, distillation and the sampling of GRPO."""

from collections.abc import Callable

import torch
from torch import Tensor

from synthnet.functional import Network
from synthnet.policy import Policy


def rollout(
    policy: Policy,
    start: Tensor,
    n_steps: int,
    net: Network,
    noise: Callable[[int], Tensor] | None = None,
    graded: int | None = None,
) -> list[Tensor]:
    """The weight-state sequence [W1 … WK], each [net weights] in raw units, from start weights [net weights].

    Takes the mean action, or adds sigma times `noise(step)` [net weights] at each step where noise is given. The policy is
    told the steps left: K, K−1, …, 1. `graded`: how many of the last steps a gradient may flow through (None: all).
    """
    scale = policy.scale(net)
    state, states = start / scale, []
    for step in range(n_steps):
        with torch.set_grad_enabled(torch.is_grad_enabled() and (graded is None or n_steps - step <= graded)):
            action = policy(state, n_steps - step, net)
        state = action.mean if noise is None else action.sample(noise(step))
        states.append(state * scale)
    return states


@torch.no_grad()
def synthesize_flat(policy: Policy, start: Tensor, n_steps: int, net: Network, chunk: int = 256) -> Tensor:
    """Mean rollouts of many nets: weights [net step weights] of W1..WK, `chunk` nets at a time."""
    parts = [torch.stack(rollout(policy, weights, n_steps, net), dim=1) for weights in start.split(chunk)]
    return torch.cat(parts)
