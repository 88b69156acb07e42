"""The mathematics of a GRPO update: advantages from rewards, and the loss that follows. Tensors in, tensors out.

Axes: P prompts, G rollouts of each, K steps, R = P·G rollouts, T action tokens. Source: Shao et al. 2024 (DeepSeekMath, arXiv
2402.03300) for group-relative advantages; Schulman et al. 2017 (arXiv 1707.06347) for the clipped surrogate; DAPO (arXiv
2503.14476) for the separate upper clip. Names as in TRL where the meaning is the same.
"""

import torch
from torch import Tensor

from synthnet.grpo.sample import NoisyStep, shared
from synthnet.policy import Policy, replayed_experts

ADVANTAGE_EPS = 1e-8
ADVANTAGE_CLIP = 5.0
APART = 0.9  # how far apart nets of different seeds are held, as a share of SGD twins
CONTROLS = ("constant", "flip", "random")
LEVELS = ("token", "sequence", "normalized")


def group_advantages(rewards_PG: Tensor, scale: str = "group") -> Tensor:
    """Group-relative advantages [P G], float64: A = (R − mean of the group) / (deviation + 1e-8), clipped at ±5.

    The Bessel-corrected deviation is the group's, the whole batch's, or there is no division (scale group | batch | none; Dr.
    GRPO, arXiv 2503.20783, argues for none). A group of equal rewards gets exactly zero; so does NaN, which stands for no
    reward and does not count.
    """
    rewards_PG = rewards_PG.double()
    highest = rewards_PG.nan_to_num(nan=-torch.inf).amax(1, keepdim=True)
    equal = highest <= rewards_PG.nan_to_num(nan=torch.inf).amin(1, keepdim=True)
    centred = torch.where(equal, 0.0, _centred(rewards_PG))  # rounding of the mean must not make advantages of equal rewards
    return _clip(centred / (_deviation(rewards_PG, scale) + ADVANTAGE_EPS if scale != "none" else 1.0))


def _clip(advantages: Tensor) -> Tensor:
    return advantages.clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP)


def _deviation(values_PG: Tensor, scale: str) -> Tensor:
    return group_spread(values_PG) if scale == "group" else values_PG[~values_PG.isnan()].std().nan_to_num(0.0)


def group_spread(rewards_PG: Tensor) -> Tensor:
    """The Bessel-corrected deviation of each group [P 1]; NaN does not count."""
    counts = (~rewards_PG.isnan()).sum(1, keepdim=True)
    return (_centred(rewards_PG).square().sum(1, keepdim=True) / (counts - 1).clamp_min(1)).sqrt()


def spread_figures(rewards_PG: Tensor) -> dict[str, float]:
    """What a run logs of its groups' rewards."""
    spread = group_spread(rewards_PG)
    return {
        "reward": rewards_PG.nanmean().item(),
        "reward_std": spread.mean().item(),
        "frac_reward_zero_std": (spread == 0).double().mean().item(),
    }


def _centred(values: Tensor) -> Tensor:
    """Values [… n] minus their mean over the last axis; NaN does not count and becomes 0."""
    return (values - values.nanmean(-1, keepdim=True)).nan_to_num(0.0)


def inter(rewards_PG: Tensor, gains_PGK: Tensor | None, config) -> Tensor:
    """Every step gets its sequence's advantage among the rollouts of its prompt [P G 1] (DeepSeekMath, section 4.1.2)."""
    return group_advantages(rewards_PG, config.scale_rewards).unsqueeze(-1)


def process(rewards_PG: Tensor, gains_PGK: Tensor, config) -> Tensor:
    """Gains standardised over all steps of the group, each step gets the discounted sum from itself on [P G K] (DeepSeekMath,
    section 4.1.3)."""
    pooled = group_advantages(gains_PGK.flatten(1), config.scale_rewards).view_as(gains_PGK)
    return _clip(discounted(pooled, config.discount))


def intra(rewards_PG: Tensor, gains_PGK: Tensor, config) -> Tensor:
    """A step's gain against the mean of its own sequence [P G K], over the pooled deviation of gains, or that of rewards where
    it is larger: a smaller one would give it more weight in `both` than `check_mix` allows. Alone it gives delayed effects the
    wrong sign; it is there for ablation."""
    own, scale = _centred(gains_PGK).double(), config.scale_rewards
    if scale != "none":
        spread = torch.maximum(_deviation(gains_PGK.flatten(1), scale), _deviation(rewards_PG, scale))
        own = own / ((spread[..., None] if scale == "group" else spread) + ADVANTAGE_EPS)
    return _clip(own)


def both(rewards_PG: Tensor, gains_PGK: Tensor, config) -> Tensor:
    """inter + mix · intra [P G K], sound where `check_mix` says so."""
    return inter(rewards_PG, gains_PGK, config) + config.mix * intra(rewards_PG, gains_PGK, config)


GROUPINGS = {"inter": inter, "process": process, "intra": intra, "both": both}


def discounted(values: Tensor, discount: float) -> Tensor:
    """Sums from each step on, Σ_j≥k discount^(j−k)·v_j, of values [… K]."""
    sums = values.clone()
    for step in range(values.shape[-1] - 2, -1, -1):
        sums[..., step] += discount * sums[..., step + 1]
    return sums


def check_mix(mix: float, n_steps: int, n_rollouts: int) -> bool:
    """Whether `both` credits delayed effects with the right sign: mix < K·(1 − 1/G)."""
    return 0 <= mix < n_steps * (1 - 1 / n_rollouts)


def controlled(advantages_PGK: Tensor, control: str, draw: torch.Generator) -> Tensor:
    """Advantages of a negative control: all one; with the opposite sign; or another rollout's of the same group, so that they
    say nothing about their own."""
    if control == "constant":
        return torch.ones_like(advantages_PGK)
    if control == "flip":
        return -advantages_PGK
    order = torch.rand(advantages_PGK.shape[:2], generator=draw).argsort(1)
    return advantages_PGK.gather(1, order.unsqueeze(-1).expand_as(advantages_PGK))


def mean_of_rollouts(lengths_R: Tensor, longest: int) -> Tensor:
    """What each token of a rollout counts [R]: mean over rollouts of their means over tokens (GRPO, arXiv 2402.03300)."""
    return 1 / (len(lengths_R) * lengths_R.clamp_min(1))


def mean_of_tokens(lengths_R: Tensor, longest: int) -> Tensor:
    """Mean over all tokens of the update (bnpo in TRL; DAPO, arXiv 2503.14476)."""
    return torch.ones_like(lengths_R) / lengths_R.sum().clamp_min(1)


def sum_over_constant(lengths_R: Tensor, longest: int) -> Tensor:
    """Sum over tokens, over rollouts times the most tokens that there can be (Dr. GRPO, arXiv 2503.20783)."""
    return torch.ones_like(lengths_R) / (len(lengths_R) * longest)


LOSS_TYPES = {"grpo": mean_of_rollouts, "bnpo": mean_of_tokens, "dapo": mean_of_tokens, "dr_grpo": sum_over_constant}


def levelled(log_ratio: Tensor, kl: Tensor, sizes: Tensor, level: str) -> Tensor:
    """Log-ratios of tokens as they are clipped [R T], from the plain ones.

    token: as they are. normalized: (ℓ + KL)/√D for a token of D weights, with the closed-form KL(old ‖ new): its deviation is
    the policy's shift per weight whatever D is, where ℓ itself leaves the clip range as D grows. (sequence, the mean over a
    rollout's tokens for all of them, GSPO, arXiv 2507.18071, is made where all of a rollout's steps meet.)
    """
    return (log_ratio + kl) / sizes.sqrt() if level == "normalized" else log_ratio


def surrogate(log_ratio: Tensor, advantages: Tensor, epsilon: float, epsilon_high: float, delta: float | None = None) -> Tensor:
    """The clipped PPO loss of each action token [R T]: −min(min(r, δ)·A, clip(r, 1−ε, 1+ε_high)·A).

    log_ratio = log π − log π_old; advantages [R] or [R T]. `delta` bounds the unclipped branch, which otherwise explodes where
    A < 0 and r is large (INTELLECT-2, arXiv 2505.07291).
    """
    advantages = advantages.unsqueeze(1) if advantages.ndim == 1 else advantages
    advantages, ratio = advantages.to(log_ratio.dtype), log_ratio.exp()
    bounded = ratio if delta is None else ratio.clamp(max=delta)
    return -torch.minimum(bounded * advantages, ratio.clamp(1 - epsilon, 1 + epsilon_high) * advantages)


def clip_shares(log_ratio: Tensor, advantages: Tensor, epsilon: float, epsilon_high: float) -> dict[str, float]:
    """Share of action tokens whose gradient the clip removes: low (r < 1−ε, A < 0) and high (r > 1+ε_high, A > 0)."""
    ratio = log_ratio.exp()
    low = ((ratio < 1 - epsilon) & (advantages < 0)).double().mean().item()
    high = ((ratio > 1 + epsilon_high) & (advantages > 0)).double().mean().item()
    return {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high}


def policy_loss(
    policy: Policy, reference: Policy | None, noisy: list[NoisyStep], advantages: Tensor, config, longest: int
) -> tuple[Tensor, dict[str, float]]:
    """The loss over the noisy steps of an update, and what to log; `config` is a GrpoConfig.

    advantages [R K], or [R 1] where a whole sequence shares one. longest: the most action tokens that a rollout can have.
    Tokens are weighted by the loss type over all rollouts of the update, whatever their networks and K. With a weight
    (beta), the closed-form KL to the reference is added.
    """
    lengths_R = torch.zeros(len(advantages), device=advantages.device)
    for step in noisy:
        lengths_R[step.rows] += step.old.n_tokens
    weights_R = LOSS_TYPES[config.loss_type](lengths_R, longest)
    parts = [_compare(policy, reference, step, config) for step in noisy]
    if config.importance_sampling_level == "sequence":
        totals_R = torch.zeros_like(lengths_R)
        for step, part in zip(noisy, parts, strict=True):
            totals_R = totals_R.index_add(0, step.rows, part["level"].sum(1))
        for step, part in zip(noisy, parts, strict=True):
            part["level"] = (totals_R / lengths_R)[step.rows, None].expand_as(part["level"])
    loss, clips, n_tokens = torch.zeros((), device=advantages.device), {}, lengths_R.sum().item()
    stats = dict.fromkeys(("kl_old", "kl", "ratio/max"), 0.0)
    for step, part in zip(noisy, parts, strict=True):
        credit = advantages[step.rows, min(step.index, advantages.shape[1] - 1), None].expand_as(part["level"])
        lost = surrogate(part["level"], credit, config.epsilon, config.epsilon_high, config.delta)
        if config.beta:
            lost = lost + config.beta * part["reference"]
            stats["kl"] += part["reference"].sum().item() / n_tokens
        loss = loss + (lost * weights_R[step.rows, None]).sum()
        stats["kl_old"] += part["kl"].sum().item() / n_tokens
        stats["ratio/max"] = max(stats["ratio/max"], part["level"].detach().exp().max().item())
        share = part["level"].numel() / n_tokens
        for name, value in clip_shares(part["level"].detach(), credit, config.epsilon, config.epsilon_high).items():
            clips[name] = clips.get(name, 0.0) + share * value
    return loss, {**stats, **clips}


def _compare(policy: Policy, reference: Policy | None, step: NoisyStep, config) -> dict[str, Tensor]:
    """The policy at a step's states against the one that sampled (level, kl) and the reference, [R T] each."""
    with replayed_experts(policy, step.experts):
        action = policy(step.states, step.steps_left, step.net, step.spec)
    log_ratio = shared(action, step.group).log_prob_tokens(step.actions) - step.log_probs
    kl = step.old.kl_tokens(action).repeat_interleave(step.group, 0)
    found = {"kl": kl, "level": levelled(log_ratio, kl, action.token_sizes(), config.importance_sampling_level)}
    if config.beta:
        with torch.no_grad():
            held = reference(step.states, step.steps_left, step.net, step.spec)
        found["reference"] = action.kl_tokens(held).repeat_interleave(step.group, 0)
    return found
