"""The GRPO stage: rewards alone make the policy better. No gradient ever passes through the target network.

Per update: a batch of fresh start weights (prompts), G rollouts of whole sequences W0 → W1..WK each, one shared reward
minibatch, group-relative advantages, one clipped policy-gradient step with a closed-form KL to the policy it started from.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from synthnet.action import WeightGaussian, standard_noise
from synthnet.device import choose_device
from synthnet.errors import InputError, at_least
from synthnet.functional import Network, score
from synthnet.grpo import bounded_reward, clip_shares, group_advantages, mirrored_sign, surrogate
from synthnet.policy import Policy
from synthnet.prompts import draw_prompt
from synthnet.runs import RunDirectory
from synthnet.seeds import generator
from synthnet.tasks import Task
from synthnet.training import LoopConfig, OptimConfig, check_steps, finish, train
from synthnet.validation import CollapseWatch, Validation


@dataclass
class RewardConfig:
    """The reward: weighted accuracy and bounded cross-entropy on `batch` images of `split`, shared by an update's rollouts.

    input_noise: standard deviation of Gaussian noise on the images, drawn once per update; it keeps the reward from saturating
    on images that the policy's nets already classify. dtype: what the rewarded nets compute in, float32 or bfloat16.
    """

    accuracy: float = 0.5
    bounded_loss: float = 0.5
    split: str = "train+reward"
    batch: int = 512
    input_noise: float = 0.0
    dtype: str = "float32"


@dataclass
class GrpoConfig:
    """Settings of `synthnet grpo`; names as in TRL where the meaning is the same.

    steps: the K that sequences may have, one drawn per update. noisy_steps: all; or one, drawn per update, while the others
    take the mean action (MixGRPO, arXiv 2507.21802); or the last (cheapest: rollouts share their states up to it). sigma:
    action noise in scale units (None: the policy's own). target_kl: where further passes over the same samples stop.
    """

    prompts: int = 16
    num_generations: int = 32
    steps: list[int] = field(default_factory=lambda: [1, 2])
    mirrored: bool = True
    noisy_steps: str = "all"
    sigma: float | None = None
    num_iterations: int = 1
    epsilon: float = 0.2
    epsilon_high: float = 0.28
    beta: float = 0.0
    target_kl: float | None = None
    noise_floor: float = 0.0
    val_seeds: int = 64
    stop_on_collapse: bool = False
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(updates=600, validate_every=25, checkpoint_every=50))
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(learning_rate=1e-4, weight_decay=0.0, warmup=10, final_rate=0.2, ema=0.95)
    )


def check(config: GrpoConfig, policy: Policy) -> None:
    """Refuse unsound settings before any work, with the reason."""
    if config.num_generations < 2:
        raise InputError(
            f"grpo.num_generations must be at least 2 (an advantage is relative to a group), got {config.num_generations}"
        )
    if config.mirrored and config.num_generations % 2:
        raise InputError(f"grpo.mirrored pairs rollouts: num_generations must be even, got {config.num_generations}")
    check_steps("grpo.steps", config.steps, policy)
    at_least(1, "grpo", config, "prompts", "num_iterations")
    at_least(2, "grpo", config, "val_seeds")
    if config.noisy_steps not in ("all", "one", "last"):
        raise InputError(f"grpo.noisy_steps must be all, one or last, got {config.noisy_steps!r}")
    if config.sigma is not None and not 0 < config.sigma < math.inf:
        raise InputError(f"grpo.sigma must be positive and finite on every trained step, got {config.sigma}")
    if config.num_iterations > 1 and config.target_kl is None:
        raise InputError("grpo.num_iterations > 1 reuses old samples: set grpo.target_kl, the KL at which passes stop")
    if not (0 < config.epsilon < 1 and config.epsilon_high > 0) or config.beta < 0:
        raise InputError("grpo needs 0 < epsilon < 1, epsilon_high > 0 and beta >= 0")
    if any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in policy.modules()):
        raise InputError("the policy has dropout: the probability ratio would be noise")


@dataclass(frozen=True)
class NoisyStep:
    """One synth step at which actions were drawn: states before it and actions taken [rollout weights], in scale units, and
    the actions' log-probability [rollout token] under the sampling policy. `group` rollouts in a row share their state."""

    steps_left: int
    states: Tensor
    actions: Tensor
    log_probs: Tensor
    group: int


def action_of(policy: Policy, states: Tensor, steps_left: int, net: Network, group: int) -> WeightGaussian:
    """The Gaussians for states [rollout weights]; where `group` rollouts in a row share their state, one forward serves all."""
    action = policy(states[::group], steps_left, net)
    return replace(action, mean=action.mean.repeat_interleave(group, 0)) if group > 1 else action


@torch.no_grad()
def sample_rollouts(
    policy: Policy, start: Tensor, n_steps: int, net: Network, config: GrpoConfig, seed: int, update: int
) -> tuple[list[NoisyStep], Tensor]:
    """Sample G sequences W0..WK for each start state [prompt weights]: the noisy steps, and WK [rollout weights] in raw units.

    Noise depends on (seed, update, prompt, step); mirrored rollouts share it with opposite signs at every step. Steps that are
    not noisy take the mean action and are not trained in this update.
    """
    scale, group = policy.scale(net), config.num_generations
    chosen = torch.randint(n_steps, (1,), generator=generator(seed, "noisy-step", update)).item()
    noisy = {"all": range(n_steps), "one": [chosen], "last": [n_steps - 1]}[config.noisy_steps]
    state, sampled = (start / scale).repeat_interleave(group, 0), []
    for step in range(n_steps):
        action = action_of(policy, state, n_steps - step, net, group)
        if step not in noisy:
            state = action.mean
            continue
        noise = torch.cat([_group_noise(config, start.shape[1], seed, update, prompt, step) for prompt in range(len(start))])
        taken = action.sample(noise.to(state))
        sampled.append(NoisyStep(n_steps - step, state, taken, action.log_prob_tokens(taken), group))
        state, group = taken, 1
    return sampled, state * scale


def _group_noise(config: GrpoConfig, n_weights: int, seed: int, update: int, prompt: int, step: int) -> Tensor:
    draw = generator(seed, "rollout", update, prompt, step)
    if not config.mirrored:
        return standard_noise((config.num_generations, n_weights), draw, torch.device("cpu"))
    half = standard_noise((config.num_generations // 2, n_weights), draw, torch.device("cpu"))
    return half.repeat_interleave(2, 0) * mirrored_sign(config.num_generations)[:, None]


def train_grpo(
    policy: Policy,
    task: Task,
    config: GrpoConfig,
    reward: RewardConfig,
    run_dir: str | Path,
    config_yaml: str,
    seed: int,
    device: str = "auto",
) -> Path:
    """Run the stage; returns the path of the policy it wrote."""
    check(config, policy)
    at_least(1, "reward", reward, "batch")
    at_least(0, "reward", reward, "input_noise")
    if reward.dtype not in ("float32", "bfloat16"):
        raise InputError(f"reward.dtype must be float32 or bfloat16, got {reward.dtype!r}")
    place, net = choose_device(device), task.network
    if config.sigma is not None:
        policy.log_sigma.data.fill_(config.sigma).log_()
        policy.config.action.sigma = config.sigma
    policy.to(place)
    frozen = copy.deepcopy(policy).eval().requires_grad_(False)
    data = tuple(part.to(place) for part in task.data(reward.split))
    validation = Validation.of_task(task, config.val_seeds, config.steps, place)
    watch = CollapseWatch(task, validation, config.stop_on_collapse)

    def step(update: int, learner: Policy) -> Iterator[tuple[Tensor, dict]]:
        n_steps, start, images, targets = draw_prompt(
            "grpo", task, data, config.steps, config.prompts, reward.batch, reward.input_noise, seed, update
        )
        sampled, final = sample_rollouts(learner, start, n_steps, net, config, seed, update)
        accuracies, losses = score(net, final, images, targets, dtype=getattr(torch, reward.dtype))
        rewards = bounded_reward(accuracies, losses, task.n_classes, reward.accuracy, reward.bounded_loss)
        rewards = rewards.view(config.prompts, config.num_generations)
        advantages = group_advantages(rewards, config.noise_floor).flatten().to(place)
        spread = rewards.std(1)
        metrics = {
            "reward": rewards.mean().item(),
            "reward_std": spread.mean().item(),
            "frac_reward_zero_std": (spread == 0).double().mean().item(),
            "accuracy": accuracies.mean().item(),
            "n_steps": n_steps,
            "evaluations": (update + 1) * rewards.numel(),
        }
        for iteration in range(config.num_iterations):
            loss, stats = policy_loss(learner, frozen, sampled, advantages, net, config)
            if iteration and stats["kl_old"] > config.target_kl:
                break
            yield loss, {**metrics, **stats}

    with RunDirectory(run_dir, config_yaml) as run:
        best = train(run, f"grpo {task.name}", policy, config.loop, config.optim, step, watch)
        best.record["best_k"] = validation.best_steps(best)
        return finish(run, best, "grpo", {"seed": seed, "before": validation(frozen), "after": validation(best)})


def policy_loss(
    policy: Policy, frozen: Policy, sampled: list[NoisyStep], advantages: Tensor, net: Network, config: GrpoConfig
) -> tuple[Tensor, dict]:
    """Surrogate over all noisy steps plus beta times the closed-form KL to the frozen policy, both means over action tokens.

    advantages [rollout]: a whole sequence shares one. Metrics are means over noisy steps.
    """
    loss, rows = 0.0, []
    for step in sampled:
        action = action_of(policy, step.states, step.steps_left, net, step.group)
        log_ratio = action.log_prob_tokens(step.actions) - step.log_probs
        loss = loss + surrogate(log_ratio, advantages, config.epsilon, config.epsilon_high) / len(sampled)
        ratio = log_ratio.detach().exp()
        # E[r − 1 − log r] under the sampling policy is KL(old ‖ new), and each term is non-negative (Schulman 2020, 'k3')
        row = {"kl_old": (ratio - 1 - log_ratio.detach()).mean().item(), "ratio/max": ratio.max().item(), "kl": 0.0}
        rows.append({**row, **clip_shares(log_ratio.detach(), advantages, config.epsilon, config.epsilon_high)})
        if config.beta:
            with torch.no_grad():
                reference = action_of(frozen, step.states, step.steps_left, net, step.group)
            kl = action.kl_tokens(reference).mean()
            loss, rows[-1]["kl"] = loss + config.beta * kl / len(sampled), kl.item()
    return loss, {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
