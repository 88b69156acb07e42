"""Settings of the GRPO stage, and the refusal of unsound ones before any work."""

import math
import warnings
from dataclasses import dataclass, field

import torch

from synthnet.engine.variation import check_warp
from synthnet.errors import InputError, at_least
from synthnet.grpo.objective import CONTROLS, check_mix
from synthnet.grpo.sample import SamplingConfig, explored_weights
from synthnet.grpo.score import RewardConfig, check_reward
from synthnet.policy.policy import Policy
from synthnet.runs import ranks
from synthnet.runs.knobs import HOT
from synthnet.tasks.task import Task
from synthnet.train.guards import GuardConfig
from synthnet.train.loop import LoopConfig, OptimConfig, check_steps


@dataclass
class GrpoConfig(SamplingConfig):
    """Settings of `synthnet grpo`; names as in TRL where the meaning is the same, formulas and sources in `grpo.py`.

    sigma: action noise in scale units (None: the policy's own; of a latent code, in its own units); sigma_by: the same for
    all weights (weight), or for the role that rewards feel most, and more for roles that they feel less (role). grouping:
    inter, process, intra or both; mix: the weight of the intra part in both; step_rewards: whether a step's gain is what it
    adds to a net's quality, or the whole reward comes at the last step; discount: of gains yet to come, in process.
    scale_rewards: group, batch or none, with a noise_floor under the deviation. loss_type: grpo, bnpo, dapo or dr_grpo.
    importance_sampling_level: token, sequence or normalized. epsilon, epsilon_high, delta: the clip. beta: weight of the KL
    to the reference policy, the one it started from, which with sync_ref_model moves by ref_model_mixup_alpha towards the
    learner every ref_model_sync_steps updates. target_kl: where further passes over the same samples stop. action: weights,
    or code: a latent code of code_dim numbers per step. micro_batches: parts of prompts whose gradients are accumulated, for
    less memory. trainable: all, head, film or lora (of lora_rank). mixed: every update holds prompts of all members of a
    family, instead of one member's in turn. select: what the best policy is chosen by on val: accuracy, the reward itself, or
    nothing (last), where val is too small for what is rewarded. signal_every: how often half-batch agreement is measured (0:
    never). control: a negative control, for ablation: constant, flip or random advantages.
    """

    sigma: float | None = None
    sigma_by: str = "weight"
    grouping: str = "inter"
    mix: float = 0.25
    step_rewards: bool = True
    discount: float = 1.0
    scale_rewards: str = "group"
    noise_floor: float = 0.0
    loss_type: str = "dapo"
    importance_sampling_level: str = "token"
    epsilon: float = 0.2
    epsilon_high: float = 0.28
    delta: float | None = None
    beta: float = 0.0
    sync_ref_model: bool = False
    ref_model_mixup_alpha: float = 0.6
    ref_model_sync_steps: int = 512
    num_iterations: int = 1
    target_kl: float | None = None
    action: str = "weights"
    code_dim: int = 128
    micro_batches: int = 1
    trainable: str = "all"
    lora_rank: int = 8
    mixed: bool = False
    select: str = "accuracy"
    signal_every: int = 25
    control: str | None = None
    val_seeds: int = 64
    stop_on_collapse: bool = False
    guard: GuardConfig = field(default_factory=GuardConfig)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(updates=600, validate_every=25, checkpoint_every=50))
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(learning_rate=1e-4, weight_decay=0.0, warmup=10, final_rate=0.2, ema=0.95)
    )

    def by_rollout(self, reward: RewardConfig) -> bool:
        """Whether K is drawn for each rollout: where a reward counts steps, one K per group would cancel in the advantages."""
        return self.steps_by == "rollout" or (self.steps_by is None and reward.needs("COUNTS_STEPS"))


HOT_CHOICES = ("steps_by", "noisy_steps", "grouping", "scale_rewards", "loss_type", "importance_sampling_level")
CHOICES = {
    **{name: HOT[f"grpo.{name}"] for name in HOT_CHOICES},
    "sigma_by": ("weight", "role"),
    "action": ("weights", "code"),
    "select": ("accuracy", "reward", "last"),
    "control": (None, *CONTROLS),
}


def check(config: GrpoConfig, reward: RewardConfig, policy: Policy, task: Task, has_hooks: bool = False) -> None:
    """Refuse unsound settings before any work, with the reason."""
    for name, known in CHOICES.items():
        if getattr(config, name) not in known:
            shown = ", ".join("null" if choice is None else choice for choice in known)
            raise InputError(f"grpo.{name} must be one of {shown}, got {getattr(config, name)!r}")
    _check_sampling(config, policy)
    _check_loss(config, policy)
    config.guard.check()
    check_reward(reward, has_hooks)
    if reward.step_cost and (config.steps_by == "group" or len(set(config.steps)) == 1):
        raise InputError("reward.step_cost is the same for a whole group, and cancels, unless K is drawn for each rollout")
    if config.select == "reward" and (has_hooks or not any(reward.weights.values())):
        raise InputError(
            "grpo.select=reward reads built-in terms only; with reward functions of your own choose accuracy or last"
        )
    if policy.code_dim and (config.action != "code" or config.code_dim != policy.code_dim):
        raise InputError(f"this policy acts through codes: set grpo.action=code grpo.code_dim={policy.code_dim}")
    if config.action == "code" and config.trainable != "all":
        raise InputError("grpo.action=code trains the code head alone: leave grpo.trainable at all")
    _check_members(config, reward, policy, task)


def _check_members(config: GrpoConfig, reward: RewardConfig, policy: Policy, task: Task) -> None:
    """Refuse what members of several data sets cannot share, and what one of them has no use for."""
    if config.mixed and len({member.data_set for member in task.members}) > 1:
        raise InputError("grpo.mixed scores all members on one minibatch, these have several data sets: pass grpo.mixed=false")
    for member in task.members:
        check_warp("reward.warp", reward.warp, member.data(reward.split)[0])
        if not explored_weights(policy, member.network, config.noisy_roles).any():
            raise InputError(f"grpo.noisy_roles: {member.arch} has none of {', '.join(config.noisy_roles)}")


def _check_sampling(config: GrpoConfig, policy: Policy) -> None:
    if config.num_generations < 2:
        raise InputError(
            f"grpo.num_generations must be at least 2 (an advantage is relative to a group), got {config.num_generations}"
        )
    if config.mirrored and config.num_generations % 2:
        raise InputError(f"grpo.mirrored pairs rollouts: num_generations must be even, got {config.num_generations}")
    check_steps("grpo.steps", config.steps, policy)
    at_least(1, "grpo", config, "code_dim", "lora_rank")
    at_least(2, "grpo", config, "val_seeds")
    most = config.prompts // ranks.world()
    if not 1 <= config.micro_batches <= most:
        raise InputError(f"grpo.micro_batches must lie in 1..{most}, the prompts of a process, got {config.micro_batches}")
    ranks.own_share(config.prompts, "grpo.prompts")
    if ranks.world() > 1 and config.current_states:
        raise InputError("grpo.current_states needs one process: which prompts it replaces depends on the whole update")
    if config.sigma is not None and not 0 < config.sigma < math.inf:
        raise InputError(f"grpo.sigma must be positive and finite on every trained step, got {config.sigma}")
    if config.sigma_by == "role" and (config.action == "code" or policy.config.action.learn_sigma):
        raise InputError("grpo.sigma_by=role shares out a fixed noise of weights: not with grpo.action=code or a learned sigma")
    if config.sigma_by == "role" and config.sigma is None:
        raise InputError("grpo.sigma_by=role needs grpo.sigma: the noise of the role that rewards feel most")
    if strange := sorted(set(config.noisy_roles) - set(policy.vocabulary)):
        raise InputError(
            f"grpo.noisy_roles: the policy has no {', '.join(strange)}; its roles are {', '.join(policy.vocabulary)}"
        )
    if config.noisy_roles and config.action == "code":
        raise InputError("grpo.noisy_roles chooses among weights: not with grpo.action=code")
    for name in ("current_states", "discount", "ref_model_mixup_alpha"):
        if not 0 <= getattr(config, name) <= 1:
            raise InputError(f"grpo.{name} must lie in [0, 1], got {getattr(config, name)}")
    if any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in policy.modules()):
        raise InputError("the policy has dropout: the probability ratio would be noise")


def _check_loss(config: GrpoConfig, policy: Policy) -> None:
    if config.num_iterations > 1 and config.target_kl is None:
        raise InputError("grpo.num_iterations > 1 reuses old samples: set grpo.target_kl, the KL at which passes stop")
    if config.target_kl is not None and not config.target_kl > 0:
        raise InputError(f"grpo.target_kl must be positive, got {config.target_kl}")
    if config.importance_sampling_level == "sequence" and config.loss_type != "grpo":
        warnings.warn("one ratio per sequence is meant for grpo.loss_type=grpo (GSPO, arXiv 2507.18071)", stacklevel=4)
    if not (0 < config.epsilon < 1 and config.epsilon_high > 0) or config.beta < 0:
        raise InputError("grpo needs 0 < epsilon < 1, epsilon_high > 0 and beta >= 0")
    if config.delta is not None and not config.delta > 1 + config.epsilon_high:
        raise InputError(f"grpo.delta must lie above 1 + epsilon_high = {1 + config.epsilon_high}, got {config.delta}")
    if config.grouping == "both" and not check_mix(config.mix, min(config.steps), config.num_generations):
        raise InputError(f"grpo.mix = {config.mix} gives delayed effects the wrong sign: keep it below K·(1 − 1/G) for every K")
    if config.importance_sampling_level == "normalized" and policy.config.action.learn_sigma:
        raise InputError("grpo.importance_sampling_level=normalized is defined for a fixed sigma only")
