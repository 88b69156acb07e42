"""Synth steps: W0 → W1 → … → WK. One function serves inference, validation, distillation and the sampling of GRPO."""

from collections.abc import Callable

import torch
from torch import Tensor

from synthnet.engine.network import Network
from synthnet.policy.critic import best_k
from synthnet.policy.policy import Policy


def rollout(
    policy: Policy,
    start: Tensor,
    n_steps: int,
    net: Network,
    noise: Callable[[int], Tensor] | None = None,
    graded: int | None = None,
) -> list[Tensor]:
    """The weight-state sequence [W1 … WK], each [net weights] in raw units, from start weights [net weights].

    Takes the mean action, or adds sigma times `noise(step)` [net dim of the action] at each step where noise is given. The
    policy is told the steps left: K, K−1, …, 1. `graded`: how many of the last steps a gradient may flow through (None: all).
    """
    scale = policy.scale(net)
    state, states = start / scale, []
    for step in range(n_steps):
        with torch.set_grad_enabled(torch.is_grad_enabled() and (graded is None or n_steps - step <= graded)):
            action = policy(state, n_steps - step, net)
            taken = action.mean if noise is None else action.sample(noise(step))
            state = policy.land(state, taken, n_steps - step, net)
        states.append(state * scale)
    return states


@torch.no_grad()
def synthesize_flat(policy: Policy, start: Tensor, n_steps: int, net: Network, chunk: int = 256) -> Tensor:
    """Mean rollouts of many nets: weights [net step weights] of W1..WK, `chunk` nets at a time."""
    parts = [torch.stack(rollout(policy, weights, n_steps, net), dim=1) for weights in start.split(chunk)]
    return torch.cat(parts)


@torch.no_grad()
def synthesize_auto(policy: Policy, start: Tensor, net: Network, plan: str = "replanned") -> tuple[Tensor, Tensor]:
    """WK [net weights] with K chosen for each net by the policy's critic, and K [net].

    Before every step the critic is asked again. replanned: the policy is told as many steps left as the critic now thinks best
    (so a plan may change on the way); one: it is told 1 each time, and the net goes on while one more step is predicted to
    gain. At most k_max steps.
    """
    scale, k_max = policy.scale(net), policy.config.k_max
    state, taken = start / scale, torch.zeros(len(start), dtype=torch.long, device=start.device)
    active = torch.arange(len(start), device=start.device)
    for step in range(k_max):
        lags = policy.judge(state[active], net)
        left = best_k(lags[:, : (2 if plan == "one" else k_max - step + 1)])
        active, left = active[left > 0], left[left > 0]
        if not len(active):
            break
        action = policy(state[active], left, net)
        state[active] = policy.land(state[active], action.mean, left, net)
        taken[active] += 1
    return state * scale, taken
