"""Calibration of GRPO before a run: which action noise and how many reward images give a gradient that is more than noise."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from synthnet.errors import InputError
from synthnet.grpo.agreement import effective_dimension, half_agreement
from synthnet.grpo.config import GrpoConfig, check
from synthnet.grpo.experience import experience
from synthnet.grpo.hooks import Hook, load_hooks
from synthnet.grpo.loop import most_tokens, prepare
from synthnet.grpo.noise import noise_shares, set_sigma
from synthnet.grpo.objective import policy_loss
from synthnet.grpo.score import RewardConfig, terms
from synthnet.policy import Policy
from synthnet.tasks import Task

SIGMAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
SNR_WANTED = 9.0  # spread of rewards in a group at least three times the noise of its minibatch
COST_ALLOWED = 0.1  # share of the reward's head-room that noise may cost
UPDATES = 3  # batches of rollouts that each sigma is measured on


@dataclass(frozen=True)
class Measured:
    """One sigma: mean reward, its drop against the mean policy's, spread within groups, signal to noise, half-batch cosine,
    effective dimension (None: no agreement at all), and whether the rule accepts it."""

    sigma: float
    reward: float
    drop: float
    spread: float
    snr: float
    cosine: float
    dimension: float | None
    accepted: bool


def calibrate(
    policy: Policy, task: Task, config: GrpoConfig, reward: RewardConfig, seed: int, place: torch.device
) -> Iterator[Measured]:
    """Measure the policy at each sigma, on rollouts that no run uses. Accepted is a sigma whose noise costs at most a tenth of
    the reward's head-room and whose spread is at least three times the minibatch noise: take the largest such."""
    config = replace(config, sigma=SIGMAS[0])  # what is asked for here need not be given
    hooks = load_hooks("reward.python", reward.python, reward.python_weights)
    check(config, reward, policy, task, bool(hooks))
    policy = prepare(policy, config, seed).to(place)
    best = sum(weight * getattr(terms()[name], "BEST", 1.0) for name, weight in reward.weights.items())
    members = task.members if config.mixed else task.members[:1]
    shares = noise_shares(policy, task.members, config, reward, seed)  # as in a run, which trains all members
    run = partial(_measure, policy, members, reward=reward, hooks=hooks, shares=shares, seed=seed)
    quiet = run(replace(config, num_generations=2, mirrored=False), sigma=1e-6)[0]
    for sigma in SIGMAS:
        mean, spread, snr, cosine, n_rollouts = run(config, sigma=sigma)
        accepted = quiet - mean <= COST_ALLOWED * (best - quiet) and snr >= SNR_WANTED
        yield Measured(sigma, mean, quiet - mean, spread, snr, cosine, effective_dimension(cosine, n_rollouts), accepted)


def _measure(
    policy: Policy,
    members: Sequence[Task],
    config: GrpoConfig,
    reward: RewardConfig,
    hooks: Sequence[Hook],
    sigma: float,
    shares: Tensor,
    seed: int,
) -> tuple:
    """Means over a few batches of rollouts: reward, spread, signal to noise, half-batch cosine; and rollouts per batch."""
    set_sigma(policy, sigma, shares)
    found, n_rollouts, longest = [], 0, most_tokens(policy, members, config)
    for index in range(UPDATES):
        update = -1 - index  # before any update of a run, so that no run repeats these draws
        seen = experience(policy, members, config, reward, hooks, seed, update, signal=True)
        cosine = half_agreement(policy, seen, config, longest, policy_loss) if config.prompts > 1 else 0.0
        found.append([seen.metrics.get(name, 0.0) for name in ("reward", "reward_std", "signal/reward_snr")] + [cosine])
        n_rollouts = len(seen.advantages)
    return (*torch.tensor(found, dtype=torch.float64).mean(0).tolist(), n_rollouts)


def recommended(measured: list[Measured], reward: RewardConfig, n_images: int) -> tuple[float, int]:
    """Sigma, and how many of the split's reward images bring its spread to three times the noise.

    Raises: InputError where no sigma gives rewards that say anything.
    """
    accepted = [row for row in measured if row.accepted]
    able = accepted or [row for row in measured if row.snr > 0]
    if not able:
        raise InputError("no sigma gives rewards that are more than noise: raise reward.batch, or choose another reward")
    best = accepted[-1] if accepted else max(able, key=lambda row: row.cosine)
    return best.sigma, min(max(round(reward.batch * SNR_WANTED / best.snr), 16), n_images)
