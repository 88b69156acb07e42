"""Calibration of GRPO before a run: which action noise and how many reward images give a gradient that is more than noise."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from synthnet.errors import InputError
from synthnet.grpo.agreement import effective_dimension, half_agreement
from synthnet.grpo.config import GrpoConfig, check
from synthnet.grpo.example import Examples
from synthnet.grpo.experience import experience
from synthnet.grpo.felt import USES
from synthnet.grpo.hooks import ExampleHook, Hook, load_hooks
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
    """One sigma: mean reward, its drop against the mean policy's, spread within groups, signal to noise (None by example, where
    each image is rewarded by itself), half-batch cosine, effective dimension (None: no agreement at all), whether the rule
    accepts it; by example, what noise of weights is that are used often."""

    sigma: float
    reward: float
    drop: float
    spread: float
    snr: float | None
    cosine: float
    dimension: float | None
    accepted: bool
    uses: str = ""


def calibrate(
    policy: Policy, task: Task, config: GrpoConfig, reward: RewardConfig, seed: int, place: torch.device
) -> Iterator[Measured]:
    """Measure the policy at each sigma, on rollouts that no run uses. Accepted is a sigma whose noise costs at most a tenth of
    the reward's head-room and, of whole nets, whose spread is at least three times the minibatch noise: take the largest such.
    By example every way of noise for weights that are used often is measured too: take the one that agrees with itself most."""
    config = replace(config, sigma=SIGMAS[0])  # what is asked for here need not be given
    hooks = load_hooks("reward.python", reward.python, reward.python_weights)
    kinds = check(config, reward, policy, task, bool(hooks))
    policy = prepare(policy, config, seed).to(place)
    best = sum(weight * getattr(terms()[name], "BEST", 1.0) for name, weight in reward.weights.items())
    members = task.members if config.mixed else task.members[:1]
    shares = noise_shares(policy, task.members, config, reward, seed)  # as in a run, which trains all members
    if kinds.example and not kinds.net:
        yield from _by_example(policy, members, config, reward, shares, best, seed)
        return
    run = partial(_measure, policy, members, reward=reward, hooks=hooks, shares=shares, seed=seed)
    quiet = run(replace(config, num_generations=2, mirrored=False), sigma=1e-6)[0]
    for sigma in SIGMAS:
        mean, spread, snr, cosine, n_rollouts = run(config, sigma=sigma)
        accepted = quiet - mean <= COST_ALLOWED * (best - quiet) and snr >= SNR_WANTED
        yield Measured(sigma, mean, quiet - mean, spread, snr, cosine, effective_dimension(cosine, n_rollouts), accepted)


def _by_example(
    policy: Policy, members: Sequence[Task], config: GrpoConfig, reward: RewardConfig, shares: Tensor, best: float, seed: int
) -> Iterator[Measured]:
    hooks = load_hooks("reward.examples", reward.examples, reward.examples_weights, ExampleHook)
    once = all(member.network.chain is not None for member in members)  # every weight is used once: all ways are one

    def run(sigma: float, uses: str) -> tuple:
        set_sigma(policy, sigma, shares)
        found, changed = [], replace(config, uses=uses, apart=0.0)
        for index in range(UPDATES):
            seen = Examples(policy, members, [1.0] * len(members), changed, reward, hooks, seed, -1 - index)
            cosine = seen.cosine() if config.prompts > 1 else 0.0
            found.append((seen.metrics["reward"], seen.metrics["reward_std"], cosine, seen.n_rollouts))
        return tuple(torch.tensor(found, dtype=torch.float64).mean(0).tolist())

    quiet = run(1e-6, config.uses)[0]
    for uses in (config.uses,) if once else USES:
        for sigma in SIGMAS:
            mean, spread, cosine, n_rollouts = run(sigma, uses)
            accepted = quiet - mean <= COST_ALLOWED * (best - quiet)
            dimension = effective_dimension(cosine, round(n_rollouts))
            yield Measured(sigma, mean, quiet - mean, spread, None, cosine, dimension, accepted, uses)


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


def recommended(measured: list[Measured], reward: RewardConfig, n_images: int) -> dict[str, object]:
    """The settings that follow: sigma; of whole nets, how many of the split's reward images bring its spread to three times the
    noise; by example, what noise of weights is that are used often.

    Raises: InputError where no sigma gives rewards that say anything.
    """
    accepted = [row for row in measured if row.accepted]
    if measured[0].snr is None:
        best = max(accepted or measured, key=lambda row: row.cosine)
        if best.cosine <= 0:
            raise InputError("no sigma gives gradients that agree at all: raise grpo.prompts or reward.batch")
        return {"grpo.sigma": best.sigma, "grpo.uses": best.uses}
    able = accepted or [row for row in measured if row.snr > 0]
    if not able:
        raise InputError("no sigma gives rewards that are more than noise: raise reward.batch, or choose another reward")
    best = accepted[-1] if accepted else max(able, key=lambda row: row.cosine)
    return {"grpo.sigma": best.sigma, "reward.batch": min(max(round(reward.batch * SNR_WANTED / best.snr), 16), n_images)}
