"""The loss of one GRPO update: the clipped surrogate over all action tokens of all rollouts, and the KL to the reference."""

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from synthnet.grpo.objective import clip_shares, levelled, surrogate, token_weights
from synthnet.grpo.sample import NoisyStep, shared
from synthnet.policy.policy import Policy
from synthnet.policy.trunks._moe import replayed_experts


def token_counts(sampled: list[NoisyStep], n_rollouts: int) -> Tensor:
    """How many action tokens each rollout of an update has [rollout]."""
    counts = torch.zeros(n_rollouts, device=sampled[0].rows.device)
    for step in sampled:
        counts[step.rows] += step.old.n_tokens
    return counts


def split_steps(sampled: list[NoisyStep], n_prompts: int, n_parts: int) -> list[list[NoisyStep]]:
    """The noisy steps of an update in parts of consecutive prompts, for gradients that are accumulated: each step holds
    `n_prompts` prompts, and all rollouts of one stay together."""
    bounds = [n_prompts * part // n_parts for part in range(n_parts + 1)]
    return [[_rows_of(step, n_prompts, first, last) for step in sampled] for first, last in pairwise(bounds)]


def _rows_of(step: NoisyStep, n_prompts: int, first: int, last: int) -> NoisyStep:
    per_prompt = len(step.rows) // n_prompts
    rows = slice(first * per_prompt, last * per_prompt)
    states = slice(rows.start // step.group, rows.stop // step.group)
    n_states = len(step.rows) // step.group
    return replace(
        step,
        states=step.states[rows],
        actions=step.actions[rows],
        log_probs=step.log_probs[rows],
        rows=step.rows[rows],
        old=replace(step.old, mean=step.old.mean[states]),
        experts=tuple(chosen.unflatten(0, (n_states, -1))[states].flatten(0, 1) for chosen in step.experts),
    )


def policy_loss(
    policy: Policy,
    frozen: Policy,
    sampled: list[NoisyStep],
    advantages: Tensor,
    config,
    longest: int,
    lengths: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The loss over the noisy steps of an update, and what to log; `config` is a GrpoConfig.

    advantages [rollout step], or [rollout 1] where a whole sequence shares one. longest: the most action tokens that a rollout
    can have, for dr_grpo. Tokens are weighted by the loss type over all rollouts of the update, whatever their networks and K;
    where `sampled` is a part of an update, `lengths` [rollout] are the token counts of the whole, and the parts' losses and
    figures add up to the whole's.
    """
    lengths = token_counts(sampled, len(advantages)) if lengths is None else lengths
    weights = token_weights(lengths, config.loss_type, longest)
    parts = [_compare(policy, frozen, step, config) for step in sampled]
    if config.importance_sampling_level == "sequence":
        totals = torch.zeros_like(lengths)
        for step, part in zip(sampled, parts, strict=True):
            totals = totals.index_add(0, step.rows, part["level"].sum(1))
        for step, part in zip(sampled, parts, strict=True):
            part["level"] = (totals / lengths)[step.rows, None].expand_as(part["level"])
    loss, clips, n_tokens = torch.zeros((), device=advantages.device), {}, lengths.sum().item()
    stats = dict.fromkeys(("kl_old", "kl", "ratio/max"), 0.0)
    for step, part in zip(sampled, parts, strict=True):
        credit = advantages[step.rows, min(step.index, advantages.shape[1] - 1), None].expand_as(part["level"])
        lost = surrogate(part["level"], credit, config.epsilon, config.epsilon_high, config.delta)
        if config.beta:
            lost = lost + config.beta * part["reference"]
            stats["kl"] += part["reference"].sum().item() / n_tokens
        loss = loss + (lost * weights[step.rows, None]).sum()
        stats["kl_old"] += part["kl"].sum().item() / n_tokens
        stats["ratio/max"] = max(stats["ratio/max"], part["level"].detach().exp().max().item())
        share = part["level"].numel() / n_tokens
        for name, value in clip_shares(part["level"].detach(), credit, config.epsilon, config.epsilon_high).items():
            clips[name] = clips.get(name, 0.0) + share * value
    return loss, {**stats, **clips}


def _compare(policy: Policy, frozen: Policy, step: NoisyStep, config) -> dict[str, Tensor]:
    """The policy at a step's states against the one that sampled (level, kl) and the reference, [rollout token] each."""
    states, left, net = step.states[:: step.group], step.steps_left, step.net
    with replayed_experts(policy, step.experts):
        action = policy(states, left, net)
    log_ratio = shared(action, step.group).log_prob_tokens(step.actions) - step.log_probs
    kl = step.old.kl_tokens(action).repeat_interleave(step.group, 0)
    found = {"kl": kl, "level": levelled(log_ratio, kl, action.token_sizes(), config.importance_sampling_level)}
    if config.beta:
        with torch.no_grad():
            reference = frozen(states, left, net)
        found["reference"] = action.kl_tokens(reference).repeat_interleave(step.group, 0)
    return found
