"""The GRPO stage: rewards alone make the policy better. No gradient ever passes through the target network.

Per update: a batch of fresh start weights (prompts), G rollouts of whole sequences W0 → W1..WK each, one shared reward
minibatch, group-relative advantages, one clipped policy-gradient step with a closed-form KL to a reference policy.
"""

import copy
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from synthnet.device import choose_device
from synthnet.errors import InputError
from synthnet.grpo.config import GrpoConfig, check
from synthnet.grpo.experience import Experience, collect, validation_reward
from synthnet.grpo.hooks import Hook, load_hooks
from synthnet.grpo.loss import policy_loss, split_steps, token_counts
from synthnet.grpo.role_noise import role_shares
from synthnet.grpo.score import RewardConfig
from synthnet.grpo.signal import effective_dimension, half_batch_cosine
from synthnet.policy.policy import Policy
from synthnet.policy.trainable import freeze_all_but
from synthnet.runs import ranks
from synthnet.runs.lab import LabConfig
from synthnet.runs.live import Live
from synthnet.runs.tracking import open_run
from synthnet.tasks.task import Task
from synthnet.train.guards import drift
from synthnet.train.loop import train
from synthnet.train.snapshot import finish
from synthnet.train.validation import CollapseWatch, Validation

NOISE_WINDOW = 8  # measurements of the half-batch cosine after which a run without any agreement is called noise


def train_grpo(
    policy: Policy,
    task: Task,
    config: GrpoConfig,
    reward: RewardConfig,
    run_dir: str | Path,
    config_yaml: str,
    seed: int,
    device: str = "auto",
    lab: LabConfig | None = None,
    reward_funcs: Sequence[Callable | tuple[Callable, float]] = (),
) -> Path:
    """Run the stage; returns the path of the policy it wrote. `reward_funcs`: reward functions of your own, or (function,
    weight) pairs, beside those of the settings (`reward_hook.py` has their signature)."""
    hooks = load_hooks(reward.python, reward.python_weights)
    hooks += [Hook(*each) if isinstance(each, tuple) else Hook(each) for each in reward_funcs]
    check(config, reward, policy, task, bool(hooks))
    policy, place = prepare(policy, config, seed), choose_device(device)
    policy.to(place)
    shares = noise_shares(policy, task.members, config, reward, seed)
    if config.sigma is not None:
        set_sigma(policy, config.sigma, shares)
    frozen = copy.deepcopy(policy).eval().requires_grad_(False)
    reference = copy.deepcopy(frozen)
    validation = Validation.of_task(task, config.val_seeds, config.steps, place)
    watch = CollapseWatch(validation, config)
    members, agreement = task.members, deque(maxlen=NOISE_WINDOW)

    def step(update: int, learner: Policy) -> Iterator[tuple[Tensor, dict]]:
        if not learner.config.action.learn_sigma and config.sigma is None:
            learner.log_sigma.data.copy_(frozen.log_sigma)
        elif not learner.config.action.learn_sigma:
            set_sigma(learner, config.sigma, shares)
        longest = most_tokens(learner, members, config)
        chosen = members if config.mixed else [members[update % len(members)]]
        signal = config.signal_every > 0 and update % config.signal_every == 0
        seen = collect(learner, chosen, config, reward, hooks, seed, update, signal)
        metrics = {**seen.metrics, "evaluations": len(seen.advantages)}
        if signal:
            metrics |= _signal(learner, seen, config, longest, agreement)
        for iteration in range(config.num_iterations):
            loss, stats = _loss(learner, reference, seen, config, longest)
            if iteration and ranks.average({"kl": stats["kl_old"]})["kl"] > config.target_kl:
                learner.auxiliary_loss()  # this forward is not part of an update, nor what it may have accumulated
                learner.zero_grad(set_to_none=True)
                break
            yield loss, {**metrics, **stats}
        if config.sync_ref_model and (update + 1) % config.ref_model_sync_steps == 0:
            mix_reference(reference, learner, config.ref_model_mixup_alpha)

    def validate(average: Policy, progress: float) -> dict:
        made = {k: validation.sequences(average, k) for k in validation.steps}
        finals = {k: [sequence[:, -1] for sequence in sequences] for k, sequences in made.items()}
        metrics = {**watch.judge(average, finals, progress), **drift(average, frozen, validation, finals[max(finals)])}
        metrics["reward"] = validation_reward(validation, validation.steps, made, reward, seed)
        scores = {"accuracy": metrics["score"], "reward": metrics["reward"], "last": progress}
        return {**metrics, "watched": metrics["score"], "score": scores[config.select]}

    def retreat(best: Policy) -> None:
        if config.sync_ref_model:
            reference.load_state_dict(best.state_dict())

    started_with = config.sigma

    def sound() -> None:
        check(config, reward, policy, task, bool(hooks))
        if policy.config.action.learn_sigma and config.sigma != started_with:
            raise InputError("grpo.sigma cannot be patched where sigma is learned (action.learn_sigma)")

    live = Live("grpo", {"grpo": config, "reward": reward}, lab, sound)
    with open_run(run_dir, config_yaml, lab) as run:
        best = train(run, f"grpo {task.name}", policy, config, step, validate, live, {"reference": reference}, retreat)
        best.record["best_k"] = validation.best_steps(best)
        return finish(run, best, "grpo", {"seed": seed, "before": validation(frozen), "after": validation(best)})


def prepare(policy: Policy, config: GrpoConfig, seed: int) -> Policy:
    """The policy with the action and the trainable part that the settings ask for. A critic is dropped: what it foresaw was the
    policy before."""
    policy.drop_critic()
    if config.action == "code" and not policy.code_dim:
        policy = policy.with_code(config.code_dim, seed)
    freeze_all_but(policy, config.trainable, config.lora_rank, seed)
    return policy.train()


def noise_shares(policy: Policy, members: Sequence[Task], config: GrpoConfig, reward: RewardConfig, seed: int) -> Tensor:
    """The noise of each column of the vocabulary as a multiple of sigma."""
    if config.sigma_by == "role":
        return role_shares(policy, members, reward.split, seed).to(policy.device)
    return torch.ones(len(policy.vocabulary), device=policy.device)


def set_sigma(policy: Policy, sigma: float, shares: Tensor) -> None:
    """Give the policy's action its noise: sigma, in scale units, times what each column of the vocabulary takes of it."""
    policy.log_sigma.data.copy_((sigma * shares).log())
    policy.config.action.sigma = float(sigma)


def most_tokens(policy: Policy, members: Sequence[Task], config: GrpoConfig) -> int:
    """The most action tokens that a rollout of any member can have: dr_grpo's constant."""
    tokens = 1 if policy.code_dim else max(policy.layout(member.network).n_action_tokens for member in members)
    return tokens * (max(config.steps) if config.noisy_steps == "all" else 1)


@torch.no_grad()
def mix_reference(reference: Policy, learner: Policy, alpha: float) -> None:
    """reference ← alpha · learner + (1 − alpha) · reference (TRL's ref_model_mixup_alpha)."""
    for held, value in zip(reference.state_dict().values(), learner.state_dict().values(), strict=True):
        held.lerp_(value, alpha)


def _loss(policy: Policy, reference: Policy, seen: Experience, config: GrpoConfig, longest: int) -> tuple[Tensor, dict]:
    """The loss of an update; in micro-batches, without a gradient: each part's has been accumulated into the policy's own."""
    if config.micro_batches == 1:
        return policy_loss(policy, reference, seen.sampled, seen.advantages, config, longest)
    lengths, whole, figures = token_counts(seen.sampled, len(seen.advantages)), torch.zeros(()), {}
    for part in split_steps(seen.sampled, config.prompts // ranks.world(), config.micro_batches):
        loss, stats = policy_loss(policy, reference, part, seen.advantages, config, longest, lengths)
        auxiliary, load = policy.auxiliary_loss()
        (loss + auxiliary / config.micro_batches).backward()
        whole = whole + loss.detach().cpu()
        added = {name: figures.get(name, 0.0) + value for name, value in stats.items()}
        figures = {**added, "ratio/max": max(figures.get("ratio/max", 0.0), stats["ratio/max"]), **load}
    return whole, figures


def half_agreement(policy: Policy, seen: Experience, config: GrpoConfig, longest: int) -> float:
    """Cosine between the reward gradients of two halves of an update's prompts; no part of the update itself."""
    alone = replace(config, beta=0.0)

    def loss_of(half: int) -> Tensor:
        return policy_loss(policy, policy, seen.sampled, seen.half(half, config.num_generations), alone, longest)[0]

    cosine = half_batch_cosine(policy, loss_of)
    policy.auxiliary_loss()  # these forwards are not part of the update
    return cosine


def _signal(policy: Policy, seen: Experience, config: GrpoConfig, longest: int, agreement: deque) -> dict:
    """Agreement of the gradients of two halves of the prompts; warns once when a window of them shows none."""
    cosine = half_agreement(policy, seen, config, longest)
    agreement.append(cosine)
    values = torch.tensor(list(agreement))
    if len(values) == NOISE_WINDOW and values.mean() < 2 * values.std() / NOISE_WINDOW**0.5:
        warnings.warn(
            f"half-batch gradients agree no more than chance (cosine {values.mean():.3f}): this run is noise; "
            "raise grpo.prompts or reward.batch, or let `synthnet calibrate` choose sigma",
            stacklevel=2,
        )
        agreement.clear()
    n_rollouts = len(seen.advantages)
    return {"signal/half_batch_cosine": cosine, "signal/effective_dimension": effective_dimension(cosine, n_rollouts)}
