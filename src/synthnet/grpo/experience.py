"""What one GRPO update learns from: sampled sequences, their rewards, and the advantages that follow."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synthnet.engine.variation import Variation
from synthnet.grpo.config import GrpoConfig
from synthnet.grpo.hooks import Completion, Hook, ask
from synthnet.grpo.objective import controlled, group_spread, step_advantages
from synthnet.grpo.rewards import Scored, join, total
from synthnet.grpo.sample import Cohort, NoisyStep, current_states, draw_cohorts, sample_rollouts
from synthnet.grpo.score import RewardConfig, measure
from synthnet.grpo.signal import reward_snr
from synthnet.policy.policy import Policy
from synthnet.policy.prompts import Prompt, draw_prompt
from synthnet.runs import ranks
from synthnet.seeds import generator
from synthnet.tasks.task import Task
from synthnet.train.validation import Validation


@dataclass(frozen=True)
class Experience:
    """The noisy steps of an update; advantages [rollout step], or [rollout 1]; and what to log. Rollouts are in the order
    member, prompt, generation."""

    sampled: list[NoisyStep]
    advantages: Tensor
    metrics: dict[str, float]

    def half(self, half: int, group: int) -> Tensor:
        """The advantages with those of every second prompt set to zero."""
        prompt = torch.arange(len(self.advantages), device=self.advantages.device) // group
        return self.advantages * (prompt % 2 == half)[:, None]


def collect(
    policy: Policy,
    members: Sequence[Task],
    config: GrpoConfig,
    reward: RewardConfig,
    hooks: Sequence[Hook],
    seed: int,
    update: int,
    signal: bool = False,
) -> Experience:
    """Sample the sequences of one update for these members, which have one data set, and score them on one minibatch that all
    share. `signal`: measure how much of the rewards' spread is more than noise of that minibatch."""
    prompts = [
        draw_prompt(
            "grpo",
            member,
            reward.split,
            policy.device,
            config.steps,
            config.prompts,
            reward.batch,
            seed,
            update,
            vary=Variation(reward.input_noise, reward.warp),
        )
        for member in members
    ]
    starts = _starts(policy, members, prompts, config, seed, update)
    images, labels = prompts[0].images, prompts[0].labels
    cohorts = draw_cohorts(starts, prompts[0].n_steps, config.by_rollout(reward), config, seed, update)
    made = [sample_rollouts(policy, cohort, config, seed, update) for cohort in cohorts]
    by_step = config.grouping != "inter" or reward.needs("NEEDS_STEPS")

    def scored_on(x: Tensor, y: Tensor) -> Scored:
        parts = [
            measure(cohort, states, x, y, reward, by_step, generator(seed, "copies", update))
            for cohort, (_, states) in zip(cohorts, made, strict=True)
        ]
        return join(parts, [cohort.rows for cohort in cohorts])

    scored = scored_on(images, labels)
    rewards, metrics = total(scored, reward.weights)
    if hooks:
        sequences, columns = [states for _, states in made], {"images": images, "labels": labels}
        built_in = any(reward.weights.values())
        rewards, logged = _ask_hooks(hooks, cohorts, sequences, scored, rewards, built_in, columns, update)
        metrics |= logged
    rewards = rewards.view(-1, config.num_generations)
    gains = step_gains(scored, rewards, config) if by_step else None
    advantages = step_advantages(
        ranks.gathered(rewards),
        None if gains is None else ranks.gathered(gains),
        config.grouping,
        config.mix,
        config.noise_floor,
        config.scale_rewards,
        config.discount,
    )
    if config.control:
        advantages = controlled(advantages, config.control, generator(seed, "control", update))
    advantages = advantages[ranks.own_share(len(advantages), "grpo.prompts")]
    if signal and any(reward.weights.values()):
        halves = [scored_on(images[i::2], labels[i::2]) for i in (0, 1)]
        parts = [total(half, reward.weights)[0].view_as(rewards) for half in halves]
        metrics["signal/reward_snr"] = reward_snr(*parts)
    sampled = [step for steps, _ in made for step in steps]
    return Experience(
        sampled,
        advantages.flatten(0, 1).to(images.device),
        {**metrics, **_summary(rewards, scored)},
    )


def validation_reward(
    validation: Validation, steps: Sequence[int], made: dict[int, list[Tensor]], reward: RewardConfig, seed: int
) -> float:
    """The built-in reward terms on val of sequences W1..WK [net step weights] of each member by K, mean over seeds, K and
    members."""
    values = []
    for n_steps in steps:
        for member, start, sequence in zip(validation.members, validation.starts, made[n_steps], strict=True):
            cohort = Cohort(member.network, n_steps, start, 1, 0, 0, torch.arange(len(start)))
            states = [start, *sequence.unbind(1)]
            draw = generator(seed, "copies", "val")
            scored = measure(cohort, states, *validation.examples(member), reward, reward.needs("NEEDS_STEPS"), draw)
            values.append(total(scored, reward.weights)[0].mean().item())
    return sum(values) / len(values)


def _starts(policy: Policy, members: Sequence[Task], prompts: list[Prompt], config: GrpoConfig, seed: int, update: int) -> list:
    """Each member's network and start weights, some of them states that the policy just made."""
    found = []
    for number, (member, prompt) in enumerate(zip(members, prompts, strict=True)):
        draw = generator(seed, "current-state", update, number)
        mine = prompt.start[ranks.own_share(config.prompts, "grpo.prompts")]
        start = current_states(policy, mine, config, prompt.n_steps, member.network, draw)
        found.append((member.network, start))
    return found


def step_gains(scored: Scored, rewards: Tensor, config: GrpoConfig) -> Tensor:
    """What each step gained [prompt rollout step], NaN beyond a rollout's last: in quality, and at the last step whatever
    else the reward holds; or, without step rewards, all of the reward at the last step. Sums over steps differ from the
    reward by W0's quality alone, which a group shares."""
    n_steps, quality = scored.n_steps[:, None], scored.quality()
    index = torch.arange(scored.accuracy.shape[1] - 1)
    gains, rest = quality.diff(dim=1), rewards.reshape(-1, 1) - quality[:, -1:]
    if not config.step_rewards:
        gains, rest = torch.zeros_like(gains), rewards.reshape(-1, 1)
    gains = gains + torch.where(index == n_steps - 1, rest, 0.0)
    gains = torch.where(index < n_steps, gains, torch.nan)
    return gains.view(*rewards.shape, -1)


def _ask_hooks(
    hooks: Sequence[Hook],
    cohorts: list[Cohort],
    sequences: list[list[Tensor]],
    scored: Scored,
    rewards: Tensor,
    built_in: bool,
    columns: dict[str, Tensor],
    update: int,
) -> tuple[Tensor, dict[str, float]]:
    """The rewards plus what the user's functions add; NaN where nothing at all applied to a rollout."""
    prompts, completions = [{}] * len(rewards), [None] * len(rewards)
    for cohort, states in zip(cohorts, sequences, strict=True):
        for row, start, final in zip(cohort.rows.tolist(), states[0], states[-1], strict=True):
            prompts[row] = cohort.net.spec.unflatten(start)
            measured = scored.accuracy[row, -1].item(), scored.loss[row, -1].item()
            completions[row] = Completion(cohort.net.spec.unflatten(final), cohort.n_steps, *measured)
    metrics: dict[str, float] = {}
    applied, state = torch.full(rewards.shape, built_in), {"update": update, "n_classes": scored.n_classes}
    for hook in hooks:
        values, logged = ask(hook, prompts, completions, state, columns)
        metrics |= {**logged, f"rewards/{hook.name}": values.nanmean().item()}
        rewards, applied = rewards + hook.weight * values.nan_to_num(0.0), applied | ~values.isnan()
    return torch.where(applied, rewards, torch.nan), metrics


def _summary(rewards: Tensor, scored: Scored) -> dict[str, float]:
    spread = group_spread(rewards)
    return {
        "reward": rewards.nanmean().item(),
        "reward_std": spread.mean().item(),
        "frac_reward_zero_std": (spread == 0).double().mean().item(),
        "accuracy": scored.accuracy[:, -1].mean().item(),
        "n_steps": scored.n_steps.double().mean().item(),
    }
