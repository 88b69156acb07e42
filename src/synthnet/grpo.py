"""The mathematics of GRPO on weights: pure functions, tensors in, tensors out.

Source: Shao et al. 2024 (DeepSeekMath, arXiv 2402.03300) for group-relative advantages; Schulman et al. 2017 for the clipped
surrogate; DAPO (arXiv 2503.14476) for the separate upper clip. Names as in TRL where the meaning is the same.
"""

import math

import torch
from torch import Tensor

ADVANTAGE_EPS = 1e-8
ADVANTAGE_CLIP = 5.0


def group_advantages(rewards: Tensor, noise_floor: float = 0.0) -> Tensor:
    """Group-relative advantages [prompt rollout] of rewards [prompt rollout], in float64.

    A = (R − mean_group) / max(std_group + 1e-8, noise_floor), with the Bessel-corrected standard deviation; a group of
    equal rewards gets exactly zero. Clipped at ±5.
    """
    rewards = rewards.double()
    centred = rewards - rewards.mean(1, keepdim=True)
    # rounding of the mean must not turn equal rewards into tiny advantages
    centred = torch.where((rewards == rewards[:, :1]).all(1, keepdim=True), torch.zeros_like(centred), centred)
    spread = (rewards.std(1, keepdim=True) + ADVANTAGE_EPS).clamp_min(noise_floor)
    return (centred / spread).clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP)


def surrogate(log_ratio: Tensor, advantages: Tensor, epsilon: float, epsilon_high: float, mask: Tensor | None = None) -> Tensor:
    """The clipped PPO loss, averaged over action tokens: −mean min(r·A, clip(r, 1−ε, 1+ε_high)·A).

    log_ratio [rollout token] = log π − log π_old per action token; advantages [rollout] or [rollout token].
    Masked-out tokens count neither in the sum nor in the mean.
    """
    if advantages.ndim == 1:
        advantages = advantages.unsqueeze(1)
    advantages = advantages.to(log_ratio.dtype)
    ratio = log_ratio.exp()
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - epsilon, 1 + epsilon_high) * advantages)
    if mask is None:
        return loss.mean()
    mask = mask.to(loss.dtype)
    return (loss * mask).sum() / mask.sum().clamp_min(1)


def clip_shares(log_ratio: Tensor, advantages: Tensor, epsilon: float, epsilon_high: float) -> dict[str, float]:
    """Share of action tokens whose gradient the clip removes: low (r < 1−ε, A < 0) and high (r > 1+ε_high, A > 0)."""
    ratio, advantages = log_ratio.exp(), advantages.unsqueeze(1) if advantages.ndim == 1 else advantages
    low = ((ratio < 1 - epsilon) & (advantages < 0)).double().mean().item()
    high = ((ratio > 1 + epsilon_high) & (advantages > 0)).double().mean().item()
    return {"clip_ratio/low_mean": low, "clip_ratio/high_mean": high}


def bounded_reward(
    accuracy: Tensor, loss: Tensor, n_classes: int, accuracy_weight: float = 0.5, loss_weight: float = 0.5
) -> Tensor:
    """0.5·accuracy + 0.5·(1 − min(CE, 2 ln C)/ln C): the second term is 0 at chance, 1 at perfection, −1 at worst.

    Accuracy alone is quantised at 1/n and ties; the bounded loss breaks ties and lets no outlier dominate a group.
    Non-finite nets get the floor of both terms.
    """
    chance = math.log(n_classes)
    accuracy = torch.where(torch.isfinite(loss), accuracy.double(), 0.0)
    loss = torch.nan_to_num(loss.double(), nan=2 * chance, posinf=2 * chance).clamp(max=2 * chance)
    return accuracy_weight * accuracy + loss_weight * (1 - loss / chance)


def mirrored_sign(n_rollouts: int) -> Tensor:
    """Signs [rollout] of mirrored pairs: rollouts 2j and 2j+1 use the same noise with opposite signs."""
    return torch.tensor([1.0, -1.0]).repeat(n_rollouts // 2)
