"""The mathematics of GRPO on weights: pure functions, tensors in, tensors out.

Source: Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300) for group-relative advantages; Schulman et al. 2017 for the clipped
surrogate; DAPO (arXiv 2503.14476) for the separate upper clip. Names as in TRL where the meaning is the same.
"""

import torch
from torch import Tensor

ADVANTAGE_EPS = 1e-8
ADVANTAGE_CLIP = 5.0


def group_advantages(rewards: Tensor, noise_floor: float = 0.0, scale: str = "group") -> Tensor:
    """Group-relative advantages [prompt rollout] of rewards [prompt rollout], in float64.

    A = (R − mean_group) / max(std + 1e-8, noise_floor), with the Bessel-corrected deviation of the group, of the whole batch,
    or with no division (scale group | batch | none; Dr. GRPO, arXiv 2503.20783, argues for none). A group of equal rewards
    gets exactly zero; so does NaN, which stands for no reward and does not count. Clipped at ±5.
    """
    rewards = rewards.double()
    centred = _centred(rewards)
    highest = rewards.nan_to_num(nan=-torch.inf).amax(1, keepdim=True)
    # rounding of the mean must not turn equal rewards into tiny advantages
    centred = torch.where(highest <= rewards.nan_to_num(nan=torch.inf).amin(1, keepdim=True), 0.0, centred)
    if scale == "none":
        return centred.clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP)
    spread = group_spread(rewards) if scale == "group" else rewards[~rewards.isnan()].std()
    return (centred / (spread + ADVANTAGE_EPS).clamp_min(noise_floor)).clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP)


def group_spread(rewards: Tensor) -> Tensor:
    """The Bessel-corrected deviation of each group [prompt 1] of rewards [prompt rollout]; NaN does not count."""
    counts = (~rewards.isnan()).sum(1, keepdim=True)
    return (_centred(rewards).square().sum(1, keepdim=True) / (counts - 1).clamp_min(1)).sqrt()


def _centred(values: Tensor) -> Tensor:
    """Values [… n] minus their mean over the last axis; NaN does not count and becomes 0."""
    return (values - values.nanmean(-1, keepdim=True)).nan_to_num(0.0)


def step_advantages(
    rewards: Tensor,
    gains: Tensor | None,
    grouping: str,
    mix: float,
    noise_floor: float = 0.0,
    scale: str = "group",
    discount: float = 1.0,
) -> Tensor:
    """Advantages [prompt rollout step] from final rewards [prompt rollout] and what each step gained [prompt rollout step], NaN
    beyond a rollout's last step.

    inter: every step gets its sequence's advantage. process: gains standardised over all steps of the group, each step gets
    the discounted sum from itself on (DeepSeekMath, arXiv 2402.03300, section 4.1.3). intra: a step's gain against the mean of
    its own sequence, over the pooled deviation of gains, or that of rewards where it is larger (a smaller one would give it
    more weight than `check_mix` allows); alone it gives delayed effects the wrong sign and is for ablation only. both: inter
    + mix · intra, sound where `check_mix` says so.
    """
    if grouping == "inter":
        return group_advantages(rewards, noise_floor, scale).unsqueeze(-1)
    pooled = group_advantages(gains.flatten(1), noise_floor, scale).view_as(gains)
    if grouping == "process":
        return discounted(pooled, discount).clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP)
    own = _centred(gains).double()
    if scale == "group":
        own = own / (torch.maximum(group_spread(gains.flatten(1)), group_spread(rewards))[..., None] + ADVANTAGE_EPS)
    elif scale == "batch":
        own = own / (torch.maximum(gains[~gains.isnan()].std(), rewards[~rewards.isnan()].std()) + ADVANTAGE_EPS)
    own = own.clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP)
    return own if grouping == "intra" else group_advantages(rewards, noise_floor, scale).unsqueeze(-1) + mix * own


def discounted(values: Tensor, discount: float) -> Tensor:
    """Sums from each step on, Σ_j≥k discount^(j−k)·v_j, of values [… step]."""
    sums = values.clone()
    for step in range(values.shape[-1] - 2, -1, -1):
        sums[..., step] += discount * sums[..., step + 1]
    return sums


CONTROLS = ("constant", "flip", "random")


def controlled(advantages: Tensor, control: str, draw: torch.Generator) -> Tensor:
    """Advantages [prompt rollout step] of a negative control: all one; with the opposite sign; or another rollout's of the same
    group, so that they say nothing about their own."""
    if control == "constant":
        return torch.ones_like(advantages)
    if control == "flip":
        return -advantages
    order = torch.rand(advantages.shape[:2], generator=draw).argsort(1)
    return advantages.gather(1, order.unsqueeze(-1).expand_as(advantages))


def check_mix(mix: float, n_steps: int, n_rollouts: int) -> bool:
    """Whether `both` credits delayed effects with the right sign: mix < K·(1 − 1/G), K steps and G rollouts."""
    return 0 <= mix < n_steps * (1 - 1 / n_rollouts)


def token_weights(lengths: Tensor, loss_type: str, longest: int) -> Tensor:
    """What each action token of a rollout counts in the loss [rollout], from the rollouts' numbers of tokens [rollout].

    grpo: mean over rollouts of their means over tokens. bnpo, dapo: mean over all tokens. dr_grpo: sum over tokens, over
    rollouts times a constant, the most tokens that there can be (`longest`). Equal where all rollouts are equally long and
    longest is their length. Names as in TRL.
    """
    if loss_type == "grpo":
        return 1 / (len(lengths) * lengths.clamp_min(1))
    total = len(lengths) * longest if loss_type == "dr_grpo" else lengths.sum().clamp_min(1)
    return torch.ones_like(lengths) / total


def levelled(log_ratio: Tensor, kl: Tensor, sizes: Tensor, level: str) -> Tensor:
    """Log-ratios of tokens as they are clipped [rollout token], from the plain ones [rollout token].

    token: as they are. normalized: (ℓ + KL)/√D for a token of D weights, with the closed-form KL(old ‖ new) [rollout token]:
    its deviation is the policy's shift per weight whatever D is, where ℓ itself leaves the clip range as D grows. (sequence,
    the mean over a rollout's tokens for all of them, GSPO, arXiv 2507.18071, is made where all of a rollout's steps meet.)
    """
    return (log_ratio + kl) / sizes.sqrt() if level == "normalized" else log_ratio


def surrogate(log_ratio: Tensor, advantages: Tensor, epsilon: float, epsilon_high: float, delta: float | None = None) -> Tensor:
    """The clipped PPO loss of each action token [rollout token]: −min(min(r, δ)·A, clip(r, 1−ε, 1+ε_high)·A).

    log_ratio [rollout token] = log π − log π_old; advantages [rollout] or [rollout token]. `delta` bounds the unclipped branch,
    which otherwise explodes where A < 0 and r is large (INTELLECT-2, arXiv 2505.07291).
    """
    if advantages.ndim == 1:
        advantages = advantages.unsqueeze(1)
    advantages = advantages.to(log_ratio.dtype)
    ratio = log_ratio.exp()
    bounded = ratio if delta is None else ratio.clamp(max=delta)
    return -torch.minimum(bounded * advantages, ratio.clamp(1 - epsilon, 1 + epsilon_high) * advantages)


def clip_shares(log_ratio: Tensor, advantages: Tensor, epsilon: float, epsilon_high: float) -> dict[str, float]:
    """Share of action tokens whose gradient the clip removes: low (r < 1−ε, A < 0) and high (r > 1+ε_high, A > 0)."""
    ratio, advantages = log_ratio.exp(), advantages.unsqueeze(1) if advantages.ndim == 1 else advantages
    low = ((ratio < 1 - epsilon) & (advantages < 0)).double().mean().item()
    high = ((ratio > 1 + epsilon_high) & (advantages > 0)).double().mean().item()
    return {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high}


def mirrored_sign(n_rollouts: int) -> Tensor:
    """Signs [rollout] of mirrored pairs: rollouts 2j and 2j+1 use the same noise with opposite signs."""
    return torch.tensor([1.0, -1.0]).repeat(n_rollouts // 2)


def mirrored(half: Tensor) -> Tensor:
    """Noise of mirrored pairs [rollout dim] from that of their first halves [pair dim]."""
    return half.repeat_interleave(2, 0) * mirrored_sign(2 * len(half)).to(half)[:, None]
