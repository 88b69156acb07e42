"""The GRPO stage: rewards alone make the policy better. No gradient ever passes through the target network.

Per update: a batch of fresh start weights (prompts), G rollouts of whole sequences W0 → W1..WK each, one shared reward
minibatch, group-relative advantages, one clipped policy-gradient step. Axes: P prompts, G rollouts of each, K steps, R = P·G.
What is left out: a value network (the group is the baseline), generalised advantages, a replay buffer; and, where beta is 0, a
reference policy.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from synthnet.engine import Variation
from synthnet.errors import InputError
from synthnet.grpo.agreement import Agreement, reward_snr
from synthnet.grpo.config import GrpoConfig, check
from synthnet.grpo.example import example_loss
from synthnet.grpo.hooks import Hook, load_hooks
from synthnet.grpo.noise import noise_shares, set_noise, set_sigma
from synthnet.grpo.objective import GROUPINGS, controlled, policy_loss, spread_figures
from synthnet.grpo.sample import Cohort, NoisyStep, Rollouts, sample
from synthnet.grpo.score import RewardConfig, Scored, measure, score, step_gains, total
from synthnet.policy import Policy, Prompt, draw_prompt, freeze_all_but
from synthnet.runs import Setup, ranks
from synthnet.seeds import generator
from synthnet.tasks import Task
from synthnet.train import Anchor, CollapseWatch, Run, Validation


class Estimator(NamedTuple):
    """What turns rewards into a gradient: three functions with the signatures of those below."""

    sample: Callable = sample
    score: Callable = score
    loss: Callable = policy_loss


def train_grpo(
    policy: Policy,
    task: Task,
    config: GrpoConfig,
    reward: RewardConfig,
    setup: Setup,
    *,
    reward_funcs: Sequence[Callable | tuple[Callable, float]] = (),
    estimator: Estimator = Estimator(),  # noqa: B008  (it is a tuple of functions)
) -> Path:
    """Run the stage; returns the path of the policy it wrote. `reward_funcs`: reward functions of your own, or (function,
    weight) pairs, beside those of the settings (`hooks.py` has their signature)."""
    hooks = load_hooks(reward.python, reward.python_weights)
    hooks += [Hook(*each) if isinstance(each, tuple) else Hook(each) for each in reward_funcs]
    check(config, reward, policy, task, bool(hooks))
    seed, members = setup.seed, task.members
    policy = prepare(policy, config, seed).to(setup.place)
    shares = noise_shares(policy, members, config, reward, seed)
    if config.sigma is not None:
        set_sigma(policy, config.sigma, shares)
    held = config.beta > 0 or bool(setup.lab and "grpo.beta" in setup.lab.schedules)
    reference = copy.deepcopy(policy).eval().requires_grad_(False) if held else None
    own_sigma, started_with = policy.log_sigma.detach().clone(), config.sigma
    validation = Validation.of_task(task, config.val_seeds, config.steps, setup.place)
    before, anchor = validation(policy), Anchor.of(policy, validation)
    watch, agreement = CollapseWatch(validation, config), Agreement()

    def validate(average: Policy, progress: float) -> dict:
        made = {k: validation.sequences(average, k) for k in validation.steps}
        finals = {k: [sequence[:, -1] for sequence in sequences] for k, sequences in made.items()}
        metrics = {**watch.judge(average, finals, progress), **anchor.drift(average, finals[max(finals)])}
        metrics["reward"] = validation_reward(validation, made, reward, seed)
        scores = {"accuracy": metrics["score"], "reward": metrics["reward"], "last": progress}
        return {**metrics, "watched": metrics["score"], "score": scores[config.select]}

    def sound() -> None:
        check(config, reward, policy, task, bool(hooks))
        if policy.config.action.learn_sigma and config.sigma != started_with:
            raise InputError("grpo.sigma cannot be patched where sigma is learned (action.learn_sigma)")
        if config.beta and not held:
            raise InputError("grpo.beta was 0 at the start, so no reference is kept: fork the run with grpo.beta above 0")

    def retreat(best: Policy) -> None:
        if reference and config.sync_ref_model:
            reference.load_state_dict(best.state_dict())

    sections, companions = {"grpo": config, "reward": reward}, {"reference": reference} if reference else {}
    updates = flat = 0
    with Run(setup, policy, config, validate, sections, sound, companions, retreat) as run:
        for update in run.updates():
            if not policy.config.action.learn_sigma:
                set_noise(policy, config.sigma, shares, own_sigma)
            turn = update % len(members)
            if config.rollout == "example":
                run.step(*example_loss(policy, members[turn], config, reward, watch.references[turn], seed, update))
                continue
            longest = most_tokens(policy, members, config)
            chosen = members if config.mixed else [members[turn]]
            signal = config.signal_every > 0 and update % config.signal_every == 0
            seen = experience(policy, chosen, config, reward, hooks, seed, update, signal, estimator)
            updates, flat = updates + 1, flat + (seen.metrics["frac_reward_zero_std"] == 1)
            if signal:
                seen.metrics.update(agreement.measure(policy, seen, config, longest, estimator.loss))
            for iteration in range(config.num_iterations):
                loss, stats = estimator.loss(policy, reference, seen.noisy, seen.advantages, config, longest)
                if iteration and ranks.average({"kl": stats["kl_old"]})["kl"] > config.target_kl:
                    policy.auxiliary_loss()  # this forward is not part of an update
                    break
                if not run.step(loss, {**seen.metrics, **stats}):
                    break
            if reference and config.sync_ref_model and (update + 1) % config.ref_model_sync_steps == 0:
                mix_reference(reference, policy, config.ref_model_mixup_alpha)
        if updates and flat == updates:
            warnings.warn("no group of any update had a spread of rewards: nothing could be learned from them", stacklevel=2)
        run.best.record["best_k"] = validation.best_steps(run.best)
        return run.finish({"before": before, "after": validation(run.best)})


@dataclass(frozen=True)
class Experience:
    """What an update learns from: its noisy steps; advantages [R K], or [R 1]; and what to log."""

    noisy: list[NoisyStep]
    advantages: Tensor
    metrics: dict[str, float]

    def half(self, half: int, group: int) -> Tensor:
        """The advantages with those of every second prompt set to zero."""
        prompt = torch.arange(len(self.advantages), device=self.advantages.device) // group
        return self.advantages * (prompt % 2 == half)[:, None]


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
    return Experience(noisy, mine.flatten(0, 1).to(images.device), figures)


def rewarded(
    policy: Policy, task: Task, prompt: Prompt, config: GrpoConfig, seed: int, update: int, estimator: Estimator
) -> Experience:
    """`experience` of a task of rewards alone: whole nets, scored by its own reward, all on one draw."""
    rollouts = estimator.sample(policy, [task.network], [prompt], config, False, seed, update)
    finals = torch.cat([part.states[-1] for part in rollouts])[torch.cat([part.cohort.rows for part in rollouts]).argsort()]
    rewards_R = task.rewards(finals, generator(seed, "own-reward", update))
    rewards_PG = rewards_R.view(-1, config.num_generations)
    advantages_PGK = GROUPINGS["inter"](ranks.gathered(rewards_PG), None, config)
    mine = advantages_PGK[ranks.own_share(len(advantages_PGK), "grpo.prompts")]
    noisy = [step for part in rollouts for step in part.noisy]
    figures = {**spread_figures(rewards_PG), "accuracy": rewards_R.mean().item(), "n_steps": float(prompt.n_steps)}
    return Experience(noisy, mine.flatten(0, 1).to(finals.device), {**figures, "evaluations": len(rewards_R)})


def _summary(rewards_PG: Tensor, scored: Scored) -> dict[str, float]:
    return {
        **spread_figures(rewards_PG),
        "accuracy": scored.accuracy[:, -1].mean().item(),
        "n_steps": scored.n_steps.double().mean().item(),
    }


def validation_reward(validation: Validation, made: dict[int, list[Tensor]], reward: RewardConfig, seed: int) -> float:
    """The built-in reward terms on val of sequences W1..WK [net step weights] of each member by K, mean over seeds, K and
    members."""
    values = []
    if validation.members[0].data is None:
        member = validation.members[0]
        return sum(validation.judge(member, sequences[0][:, -1])[0].mean().item() for sequences in made.values()) / len(made)
    for n_steps, sequences in made.items():
        for member, start, sequence in zip(validation.members, validation.starts, sequences, strict=True):
            cohort = Cohort(member.network, n_steps, start, 1, 0, 0, torch.arange(len(start)))
            rollouts = Rollouts(cohort, [start, *sequence.unbind(1)], [])
            draw = generator(seed, "copies", "val")
            scored = measure(rollouts, *validation.examples(member), reward, reward.needs("NEEDS_STEPS"), draw)
            values.append(total(scored, reward.weights)[0].mean().item())
    return sum(values) / len(values)


def prepare(policy: Policy, config: GrpoConfig, seed: int) -> Policy:
    """The policy with the action and the trainable part that the settings ask for. A critic is dropped: what it foresaw was the
    policy before."""
    policy.drop_critic()
    if config.action == "code" and not policy.code_dim:
        policy = policy.with_code(config.code_dim, seed)
    freeze_all_but(policy, config.trainable, config.lora_rank, seed)
    return policy.train()


def most_tokens(policy: Policy, members: Sequence[Task], config: GrpoConfig) -> int:
    """The most action tokens that a rollout of any member can have: dr_grpo's constant."""
    tokens = 1 if policy.code_dim else max(policy.layout(member.network).n_action_tokens for member in members)
    return tokens * (max(config.steps) if config.noisy_steps == "all" else 1)


@torch.no_grad()
def mix_reference(reference: Policy, learner: Policy, alpha: float) -> None:
    """reference ← alpha · learner + (1 − alpha) · reference (TRL's ref_model_mixup_alpha)."""
    for held, value in zip(reference.state_dict().values(), learner.state_dict().values(), strict=True):
        held.lerp_(value, alpha)
