"""What one update of GRPO samples and learns from where rollouts are whole nets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from synthnet.engine import Network, Variation
from synthnet.grpo.agreement import half_agreement, in_half, reward_snr
from synthnet.grpo.config import GrpoConfig
from synthnet.grpo.hooks import Hook
from synthnet.grpo.objective import APART, GROUPINGS, controlled, policy_loss, spread_figures
from synthnet.grpo.sample import NoisyStep, sample
from synthnet.grpo.score import RewardConfig, score, step_gains
from synthnet.grpo.scored import Scored
from synthnet.nets import shortfall
from synthnet.policy import Policy, Prompt, draw_prompt, rollout
from synthnet.runs import ranks
from synthnet.seeds import generator
from synthnet.tasks import Task


class Estimator(NamedTuple):
    """What turns rewards into a gradient: three functions with the signatures of these."""

    sample: Callable = sample
    score: Callable = score
    loss: Callable = policy_loss


class Nets:
    """The whole nets of one update, and the loss of a pass over them."""

    def __init__(self, policy, members, wanted, config, reward, hooks, seed, update, signal, longest, estimator):
        """`wanted`: the aligned distance of each member that grpo.apart holds; empty where something else does."""
        self.policy, self.wanted, self.config, self.longest, self.estimator = policy, wanted, config, longest, estimator
        self.seen = experience(policy, members, config, reward, hooks, seed, update, signal, estimator)
        self.metrics, self.n_rollouts = self.seen.metrics, len(self.seen.advantages)

    def loss(self, reference: Policy | None) -> tuple[Tensor, dict[str, float]]:
        seen = self.seen
        loss, stats = self.estimator.loss(self.policy, reference, seen.noisy, seen.advantages, self.config, self.longest)
        if self.config.apart and self.wanted:
            lack = sum(self._lack(*each) for each in zip(seen.starts, self.wanted, strict=True)) / len(self.wanted)
            loss, stats["shortfall"] = loss + self.config.apart * lack, lack.item()
        return loss, {**self.metrics, **stats}

    def _lack(self, prompt: tuple[Network, Prompt], wanted: float) -> Tensor:
        net, (n_steps, start, _, _, spec) = prompt
        return shortfall(net.alignment, rollout(self.policy, start, n_steps, net, spec=spec)[-1], APART * wanted)

    def cosine(self) -> float:
        """Between the reward gradients of two halves of the prompts."""
        return half_agreement(self.policy, self.seen, self.config, self.longest, self.estimator.loss)


@dataclass(frozen=True)
class Experience:
    """What an update learns from: its noisy steps; advantages [R K], or [R 1]; what to log; and each member's network and
    prompt."""

    noisy: list[NoisyStep]
    advantages: Tensor
    metrics: dict[str, float]
    starts: list[tuple[Network, Prompt]]

    def half(self, half: int, group: int) -> Tensor:
        """The advantages with those of every second prompt set to zero."""
        return self.advantages * in_half(len(self.advantages), group, half).to(self.advantages.device)[:, None]


def experience(
    policy: Policy,
    members: Sequence[Task],
    config: GrpoConfig,
    reward: RewardConfig,
    hooks: Sequence[Hook],
    seed: int,
    update: int,
    signal: bool = False,
    estimator: Estimator = Estimator(),  # noqa: B008
) -> Experience:
    """Sample the sequences of one update for these members, which have one data set, and score them on one minibatch that all
    share. `signal`: measure how much of the rewards' spread is more than noise of that minibatch."""
    vary, drawn = Variation(reward.input_noise, reward.warp), (config.steps, config.prompts, reward.batch, seed, update)
    prompts = [draw_prompt("grpo", each, reward.split, policy.device, *drawn, vary=vary) for each in members]
    images, labels = prompts[0].images, prompts[0].labels
    if members[0].data is None:
        return rewarded(policy, members[0], prompts[0], config, seed, update, estimator)
    nets, by_step = [each.network for each in members], config.grouping != "inter" or reward.needs("NEEDS_STEPS")
    rollouts = estimator.sample(policy, nets, prompts, config, config.k_by_rollout(reward), seed, update)
    rewards_R, scored, metrics = estimator.score(rollouts, images, labels, reward, by_step, hooks, seed, update)
    rewards_PG = rewards_R.view(-1, config.num_generations)
    gains_PGK = step_gains(scored, rewards_R, config.step_rewards).view(*rewards_PG.shape, -1) if by_step else None
    if signal and any(reward.weights.values()):
        halves = [estimator.score(rollouts, images[i::2], labels[i::2], reward, by_step, (), seed, update)[0] for i in (0, 1)]
        metrics["signal/reward_snr"] = reward_snr(*(half.view_as(rewards_PG) for half in halves))
    everywhere = (ranks.gathered(rewards_PG), None if gains_PGK is None else ranks.gathered(gains_PGK))
    advantages_PGK = GROUPINGS[config.grouping](*everywhere, config)
    if config.control:
        advantages_PGK = controlled(advantages_PGK, config.control, generator(seed, "control", update))
    mine = advantages_PGK[ranks.own_share(len(advantages_PGK), "grpo.prompts")]
    noisy = [step for part in rollouts for step in part.noisy]
    figures = {**metrics, **_summary(rewards_PG, scored), "evaluations": len(rewards_R)}
    return Experience(noisy, mine.flatten(0, 1).to(images.device), figures, list(zip(nets, prompts, strict=True)))


def rewarded(
    policy: Policy, task: Task, prompt: Prompt, config: GrpoConfig, seed: int, update: int, estimator: Estimator
) -> Experience:
    """`experience` of a task of rewards alone: whole nets, scored by its own reward, all on one draw."""
    rollouts = estimator.sample(policy, [task.network], [prompt], config, False, seed, update)
    finals = torch.cat([part.states[-1] for part in rollouts])[torch.cat([part.cohort.rows for part in rollouts]).argsort()]
    spec = prompt.share(ranks.own_share(config.prompts, "grpo.prompts")).spec
    spec = spec if spec is None else spec.repeat_interleave(config.num_generations, 0)
    rewards_R = task.rewards(finals, generator(seed, "own-reward", update), shaped=True, spec=spec)
    rewards_PG = rewards_R.view(-1, config.num_generations)
    advantages_PGK = GROUPINGS["inter"](ranks.gathered(rewards_PG), None, config)
    mine = advantages_PGK[ranks.own_share(len(advantages_PGK), "grpo.prompts")]
    noisy = [step for part in rollouts for step in part.noisy]
    figures = {**spread_figures(rewards_PG), "accuracy": rewards_R.mean().item(), "n_steps": float(prompt.n_steps)}
    figures["evaluations"] = len(rewards_R)
    return Experience(noisy, mine.flatten(0, 1).to(finals.device), figures, [(task.network, prompt)])


def _summary(rewards_PG: Tensor, scored: Scored) -> dict[str, float]:
    return {
        **spread_figures(rewards_PG),
        "accuracy": scored.accuracy[:, -1].mean().item(),
        "n_steps": scored.n_steps.double().mean().item(),
    }
