"""The loss of one GRPO update: the clipped surrogate over all action tokens of all rollouts, and the KL to the reference."""

import torch
from torch import Tensor

from synthnet.backbones._moe import replayed_experts
from synthnet.grpo import clip_shares, levelled, surrogate, token_weights
from synthnet.policy import Policy
from synthnet.sampling import NoisyStep, shared


def policy_loss(
    policy: Policy, frozen: Policy, sampled: list[NoisyStep], advantages: Tensor, config, longest: int
) -> tuple[Tensor, dict[str, float]]:
    """The loss over the noisy steps of an update, and what to log; `config` is a GrpoConfig.

    advantages [rollout step], or [rollout 1] where a whole sequence shares one. longest: the most action tokens that a rollout
    can have, for dr_grpo. Tokens are weighted by the loss type over all rollouts of the update, whatever their networks and K.
    """
    lengths = torch.zeros(len(advantages), device=advantages.device)
    for step in sampled:
        lengths[step.rows] += step.old.n_tokens
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
