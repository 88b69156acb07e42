"""The GRPO stage: rewards alone make the policy better. No gradient ever passes through the target network.

Per update: a batch of fresh start weights (prompts), G rollouts of whole sequences W0 → W1..WK each, one shared reward
minibatch, group-relative advantages, one clipped policy-gradient step with a closed-form KL to the policy it started from.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from synthnet.device import choose_device
from synthnet.errors import InputError, at_least
from synthnet.functional import Network, predictions, score
from synthnet.grpo import check_mix, clip_shares, levelled, step_advantages, surrogate, token_weights
from synthnet.policy import Policy
from synthnet.prompts import draw_prompt
from synthnet.rewards import Scored, needs, total
from synthnet.runs import RunDirectory
from synthnet.sampling import NoisyStep, SamplingConfig, sample_rollouts, shared
from synthnet.tasks import Task
from synthnet.training import LoopConfig, OptimConfig, check_steps, finish, train
from synthnet.validation import CollapseWatch, Validation


@dataclass
class RewardConfig:
    """The weight of each reward term (one file each in `rewards/`), measured on `batch` images of `split` that all rollouts of
    an update share.

    input_noise: standard deviation of Gaussian noise on the images, drawn once per update; it keeps the reward from saturating
    on images that the policy's nets already classify. dtype: what the rewarded nets compute in, float32 or bfloat16.
    """

    accuracy: float = 0.5
    bounded_loss: float = 0.5
    gain: float = 0.0
    efficiency: float = 0.0
    stability: float = 0.0
    worst_class: float = 0.0
    calibration: float = 0.0
    split: str = "train+reward"
    batch: int = 512
    input_noise: float = 0.0
    dtype: str = "float32"

    @property
    def weights(self) -> dict[str, float]:
        """Term name -> weight."""
        return {name: value for name, value in asdict(self).items() if name not in ("split", "batch", "input_noise", "dtype")}


@dataclass
class GrpoConfig(SamplingConfig):
    """Settings of `synthnet grpo`; names as in TRL where the meaning is the same, formulas and sources in `grpo.py`.

    sigma: action noise in scale units (None: the policy's own). grouping: inter, process, intra or both; mix: the weight of the
    intra part in both. scale_rewards: group, batch or none, with a noise_floor under the deviation. loss_type: grpo, bnpo, dapo
    or dr_grpo. importance_sampling_level: token, sequence or normalized. epsilon, epsilon_high, delta: the clip. beta: weight
    of the KL to the policy it started from. target_kl: where further passes over the same samples stop.
    """

    sigma: float | None = None
    grouping: str = "inter"
    mix: float = 0.25
    scale_rewards: str = "group"
    noise_floor: float = 0.0
    loss_type: str = "dapo"
    importance_sampling_level: str = "token"
    epsilon: float = 0.2
    epsilon_high: float = 0.28
    delta: float | None = None
    beta: float = 0.0
    num_iterations: int = 1
    target_kl: float | None = None
    val_seeds: int = 64
    stop_on_collapse: bool = False
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(updates=600, validate_every=25, checkpoint_every=50))
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(learning_rate=1e-4, weight_decay=0.0, warmup=10, final_rate=0.2, ema=0.95)
    )


CHOICES = {
    "noisy_steps": ("all", "one", "last"),
    "grouping": ("inter", "process", "intra", "both"),
    "scale_rewards": ("group", "batch", "none"),
    "loss_type": ("grpo", "bnpo", "dapo", "dr_grpo"),
    "importance_sampling_level": ("token", "sequence", "normalized"),
}


def check(config: GrpoConfig, reward: RewardConfig, policy: Policy) -> None:
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
    for name, known in CHOICES.items():
        if getattr(config, name) not in known:
            raise InputError(f"grpo.{name} must be one of {', '.join(known)}, got {getattr(config, name)!r}")
    if config.sigma is not None and not 0 < config.sigma < math.inf:
        raise InputError(f"grpo.sigma must be positive and finite on every trained step, got {config.sigma}")
    if config.num_iterations > 1 and config.target_kl is None:
        raise InputError("grpo.num_iterations > 1 reuses old samples: set grpo.target_kl, the KL at which passes stop")
    if not (0 < config.epsilon < 1 and config.epsilon_high > 0) or config.beta < 0:
        raise InputError("grpo needs 0 < epsilon < 1, epsilon_high > 0 and beta >= 0")
    if config.delta is not None and not config.delta > 1 + config.epsilon_high:
        raise InputError(f"grpo.delta must lie above 1 + epsilon_high = {1 + config.epsilon_high}, got {config.delta}")
    if config.grouping == "both" and not check_mix(config.mix, min(config.steps), config.num_generations):
        raise InputError(f"grpo.mix = {config.mix} gives delayed effects the wrong sign: keep it below K·(1 − 1/G) for every K")
    if config.importance_sampling_level == "normalized" and policy.config.action.learn_sigma:
        raise InputError("grpo.importance_sampling_level=normalized is defined for a fixed sigma only")
    if any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in policy.modules()):
        raise InputError("the policy has dropout: the probability ratio would be noise")
    at_least(1, "reward", reward, "batch")
    at_least(0, "reward", reward, "input_noise")
    if not all(math.isfinite(weight) for weight in reward.weights.values()) or not any(reward.weights.values()):
        raise InputError(f"reward weights must be finite and not all zero, got {reward.weights}")
    if reward.dtype not in ("float32", "bfloat16"):
        raise InputError(f"reward.dtype must be float32 or bfloat16, got {reward.dtype!r}")


def measure(
    net: Network,
    states: list[Tensor],
    group: int,
    images: Tensor,
    labels: Tensor,
    task: Task,
    reward: RewardConfig,
    steps: bool,
) -> Scored:
    """The sequences W0..WK (each [rollout weights]) on one minibatch; without `steps`, their last states alone.

    `group` rollouts share W0, which is scored once.
    """
    accuracies, losses, norms = [], [], []
    scale = task.start_scale.to(images.device)
    for number, state in enumerate(states if steps else states[-1:]):
        times = group if steps and number == 0 else 1
        found = score(net, state[::times], images, labels, dtype=getattr(torch, reward.dtype))
        accuracies.append(found[0].repeat_interleave(times))
        losses.append(found[1].repeat_interleave(times))
        norms.append((state / scale).square().mean(1).sqrt().cpu())
    wanted = needs(reward.weights, "NEEDS_PREDICTIONS")
    probabilities = predictions(net, states[-1], images).cpu() if wanted else None
    stacked = (torch.stack(part, 1) for part in (accuracies, losses, norms))
    return Scored(task.n_classes, *stacked, probabilities, labels.cpu())


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
    check(config, reward, policy)
    place, members = choose_device(device), task.members
    if config.sigma is not None:
        policy.log_sigma.data.fill_(config.sigma).log_()
        policy.config.action.sigma = config.sigma
    policy.to(place)
    frozen = copy.deepcopy(policy).eval().requires_grad_(False)
    data = tuple(part.to(place) for part in task.data(reward.split))
    validation = Validation.of_task(task, config.val_seeds, config.steps, place)
    watch = CollapseWatch(validation, config.stop_on_collapse)
    by_step = config.grouping != "inter" or needs(reward.weights, "NEEDS_STEPS")

    def step(update: int, learner: Policy) -> Iterator[tuple[Tensor, dict]]:
        member = members[update % len(members)]
        net = member.network
        n_steps, start, images, targets = draw_prompt(
            "grpo", member, data, config.steps, config.prompts, reward.batch, reward.input_noise, seed, update
        )
        sampled, states = sample_rollouts(learner, start, n_steps, net, config, seed, update)
        scored = measure(net, states, config.num_generations, images, targets, member, reward, by_step)
        rewards, means = total(scored, reward.weights)
        rewards = rewards.view(config.prompts, config.num_generations)
        gains = scored.quality().diff(dim=1).view(*rewards.shape, -1) if by_step else None
        advantages = step_advantages(rewards, gains, config.grouping, config.mix, config.noise_floor, config.scale_rewards)
        spread = rewards.std(1)
        metrics = {
            "reward": rewards.mean().item(),
            "reward_std": spread.mean().item(),
            "frac_reward_zero_std": (spread == 0).double().mean().item(),
            **{f"rewards/{name}": value for name, value in means.items()},
            "accuracy": scored.accuracy[:, -1].mean().item(),
            "n_steps": n_steps,
            "evaluations": (update + 1) * rewards.numel(),
        }
        for iteration in range(config.num_iterations):
            loss, stats = policy_loss(learner, frozen, sampled, advantages.flatten(0, 1).to(place), net, config)
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
    """The surrogate over all noisy steps, plus beta times the closed-form KL to the frozen policy.

    advantages [rollout step], or [rollout 1] where a whole sequence shares one. Both sums are over the action tokens of all
    noisy steps, weighted by the loss type.
    """
    log_ratios, kls, credits, references, sizes = [], [], [], [], []
    for step in sampled:
        action = policy(step.states[:: step.group], step.steps_left, net)
        log_ratio = shared(action, step.group).log_prob_tokens(step.actions) - step.log_probs
        log_ratios.append(log_ratio)
        kls.append(step.old.kl_tokens(action).repeat_interleave(step.group, 0))
        credits.append(advantages[:, min(step.index, advantages.shape[1] - 1), None].expand_as(log_ratio))
        sizes.append(action.token_sizes())
        if config.beta:
            with torch.no_grad():
                reference = frozen(step.states[:: step.group], step.steps_left, net)
            references.append(action.kl_tokens(reference).repeat_interleave(step.group, 0))
    log_ratio, kl, credit = (torch.cat(part, 1) for part in (log_ratios, kls, credits))
    n_rollouts, n_tokens = log_ratio.shape
    longest = n_tokens // len(sampled) * (max(config.steps) if config.noisy_steps == "all" else 1)
    weights = token_weights(torch.full((n_rollouts,), float(n_tokens)), config.loss_type, longest).to(log_ratio)[:, None]
    level = levelled(log_ratio, kl, torch.cat(sizes), config.importance_sampling_level)
    loss = (surrogate(level, credit, config.epsilon, config.epsilon_high, config.delta) * weights).sum()
    stats = {"kl_old": kl.mean().item(), "ratio/max": level.detach().exp().max().item(), "kl": 0.0}
    if config.beta:
        reference_kl = torch.cat(references, 1)
        loss, stats["kl"] = loss + config.beta * (reference_kl * weights).sum(), reference_kl.mean().item()
    return loss, {**stats, **clip_shares(level.detach(), credit, config.epsilon, config.epsilon_high)}
