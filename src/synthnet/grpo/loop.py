"""The GRPO stage: rewards alone make the policy better. No gradient ever passes through the target network.

Per update: a batch of fresh start weights (prompts), one reward minibatch, and rollouts: its examples, each under own draws of
the action (`example.py`), or whole nets, G sequences W0 → W1..WK of each prompt (`experience.py`), or both; group-relative
advantages, one clipped policy-gradient step a pass.
What is left out: a value network (the group is the baseline), generalised advantages, a replay buffer; and, where beta is 0, a
reference policy.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from synthnet.engine import rounded
from synthnet.errors import InputError
from synthnet.grpo.agreement import Agreement
from synthnet.grpo.config import GrpoConfig, check, kinds_of
from synthnet.grpo.example import Examples, rewards_of
from synthnet.grpo.experience import Estimator, Nets
from synthnet.grpo.hooks import ExampleHook, Hook, load_hooks
from synthnet.grpo.noise import noise_shares, set_noise, set_sigma
from synthnet.grpo.sample import Cohort, Rollouts
from synthnet.grpo.score import RewardConfig, measure, total
from synthnet.grpo.scored import Seen
from synthnet.policy import Policy, freeze_all_but
from synthnet.runs import Setup, ranks
from synthnet.seeds import generator
from synthnet.tasks import Task
from synthnet.train import Anchor, CollapseWatch, Run, Validation

FLAT = 10  # updates without a spread of rewards, after which a run says so
NO_SPREAD = (
    "no group of any update had a spread of rewards: nothing can be learned from them. Raise grpo.sigma, or let the reward "
    "tell more of nets that fail (how far they came)"
)


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
    hooks = load_hooks("reward.python", reward.python, reward.python_weights)
    hooks += [Hook(*each) if isinstance(each, tuple) else Hook(each) for each in reward_funcs]
    example_hooks = load_hooks("reward.examples", reward.examples, reward.examples_weights, ExampleHook)
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
            chosen = range(len(members)) if config.mixed else [turn]
            signal = config.signal_every > 0 and update % config.signal_every == 0
            picked, wanted = [members[number] for number in chosen], [watch.references[number] for number in chosen]
            kinds = kinds_of(config, reward, policy, task, bool(hooks))  # rewards are hot
            parts, (of_examples, of_nets) = [], kinds.shares(reward, example_hooks, hooks)
            if of_examples:
                drawn = picked, wanted, config, reward, example_hooks, seed, update
                parts.append((of_examples, Examples(policy, *drawn)))
            if of_nets:
                whole, wanted = (reward.of_nets, []) if of_examples else (reward, wanted)
                drawn = picked, wanted, config, whole, hooks, seed, update
                parts.append((of_nets, Nets(policy, *drawn, signal, most_tokens(policy, members, config), estimator)))
            updates, flat = updates + 1, flat + all(part.metrics["frac_reward_zero_std"] == 1 for _, part in parts)
            if updates == flat == FLAT:
                warnings.warn(NO_SPREAD, stacklevel=2)
            if signal:
                parts[0][1].metrics.update(agreement.measure(parts[0][1].cosine(), parts[0][1].n_rollouts))
            for iteration in range(config.num_iterations):
                passes = [(share, *part.loss(reference)) for share, part in parts]
                kl_old = max(stats["kl_old"] for _, _, stats in passes)
                if iteration and ranks.average({"kl": kl_old})["kl"] > config.target_kl:
                    policy.auxiliary_loss()  # this forward is not part of an update
                    break
                loss = sum(share * lost for share, lost, _ in passes)
                if not run.step(loss, {name: value for _, _, stats in reversed(passes) for name, value in stats.items()}):
                    break
            if reference and config.sync_ref_model and (update + 1) % config.ref_model_sync_steps == 0:
                mix_reference(reference, policy, config.ref_model_mixup_alpha)
        if 0 < updates == flat < FLAT:
            warnings.warn(NO_SPREAD, stacklevel=2)
        run.best.record["best_k"] = validation.best_steps(run.best)
        return run.finish({"before": before, "after": validation(run.best)})


def validation_reward(validation: Validation, made: dict[int, list[Tensor]], reward: RewardConfig, seed: int) -> float:
    """The built-in reward terms on val of sequences W1..WK [net step weights] of each member by K, mean over seeds, K and
    members."""
    values = []
    for n_steps, sequences in made.items():
        parts = zip(validation.members, validation.starts, validation.specs, sequences, strict=True)
        for member, start, spec, sequence in parts:
            if member.data is None:
                values.append(validation.judge(member, sequence[:, -1], spec)[0].mean().item())
                continue
            if member.variant is not None:
                values.append(variants_reward(member, sequence[:, -1], *validation.examples(member), spec, reward))
                continue
            cohort = Cohort(member.network, n_steps, start, 1, 0, 0, torch.arange(len(start)))
            rollouts = Rollouts(cohort, [start, *sequence.unbind(1)], [])
            draw = generator(seed, "copies", "val")
            scored = measure(rollouts, *validation.examples(member), reward, reward.needs("NEEDS_STEPS"), draw)
            values.append(total(scored, reward.weights)[0].mean().item())
    return sum(values) / len(values)


def variants_reward(member: Task, nets: Tensor, inputs: Tensor, targets: Tensor, spec: Tensor, reward: RewardConfig) -> float:
    """The reward terms of nets [net weights], each on the examples of its own spec: means over examples and nets."""
    inputs, targets = member.varied(inputs, targets, spec)
    nets = rounded(member.network.spec, nets, reward.bits)
    seen = [Seen(member.network.logits(nets[i : i + 1], inputs[i]), targets[i], member.objective) for i in range(len(nets))]
    return sum(rewards_of(each, reward, ()).mean().item() for each in seen) / len(seen)


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
