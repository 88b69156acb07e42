"""Settings of the GRPO stage, and the refusal of unsound ones before any work."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from synthnet.engine import Variation, check_variation
from synthnet.errors import InputError
from synthnet.grpo.chains import PASSED
from synthnet.grpo.example import no_examples
from synthnet.grpo.felt import LAYERS, USES
from synthnet.grpo.hooks import Hook
from synthnet.grpo.objective import CONTROLS, GROUPINGS, LEVELS, LOSS_TYPES, check_mix
from synthnet.grpo.score import RewardConfig, check_reward
from synthnet.policy import PARTS, Policy
from synthnet.runs import ranks
from synthnet.settings import COUNT, OFTEN, SHARE, WEIGHT, check_settings, setting
from synthnet.tasks import Task
from synthnet.train import STEPS, GuardConfig, LoopConfig, OptimConfig, check_steps


@dataclass
class GrpoConfig:
    """Settings of `synthnet grpo`; names as in TRL where the meaning is the same."""

    prompts: int = setting(16, "start states an update, of each member of a family in mixed updates", COUNT, hot=True)
    rollout: str | None = setting(
        None,
        "what a rollout is: a net on the whole minibatch, or an example under its own draw of weights (`example.py`); null: "
        "examples for the rewards that each has by itself, nets for the rest",
        choices=(None, "net", "example"),
    )
    draws: int = setting(4, "by example: draws of each, its group", (4, 10_000), hot=True)
    passed_on: str = setting(
        "mean",
        "by example, what a step passes on to the next: the mean, or, of each of num_generations rollouts, a whole draw",
        choices=PASSED,
        hot=True,
    )
    uses: str = setting(
        "auto", "by example: what noise of a weight is that an example uses often (`felt.py`)", choices=USES, hot=True
    )
    noisy_layers: str | None = setting(
        None,
        "by example: which layers have noise: all, the last, or one that is drawn for each update; null: one, in nets that use "
        "a weight more than once for an example",
        choices=(None, *LAYERS),
        hot=True,
    )
    apart: float = setting(
        0.0, "weight of what nets of different seeds lack in distance, which reads no reward", WEIGHT, hot=True
    )
    num_generations: int = setting(32, "rollouts of each: its group", (2, 100_000), hot=True)
    steps: list[int] = setting([1, 2], "the K that sequences may have", STEPS, hot=True)
    steps_by: str | None = setting(
        None,
        "one K for all groups of an update, or one for each rollout, mirrored pairs sharing theirs "
        "(null: that where a reward term counts steps)",
        choices=(None, "group", "rollout"),
        hot=True,
    )
    mirrored: bool = setting(True, "rollouts come in pairs with opposite noise", hot=True)
    noisy_steps: str = setting(
        "all",
        "at which steps actions are drawn: all; one of them, drawn an update (MixGRPO, arXiv 2507.21802); the last (cheapest: "
        "rollouts share their states up to it)",
        choices=("all", "one", "last"),
        hot=True,
    )
    current_states: float = setting(
        0.0, "share of prompts that start from a state which the policy just made of a fresh W0", SHARE, hot=True
    )
    sigma: float | None = setting(
        None, "action noise in scale units (null: the policy's own); of a latent code, in its own units", (1e-5, 10), hot=True
    )
    sigma_by: str = setting(
        "weight", "the same noise for all weights, or more for roles that rewards feel less", choices=("weight", "role")
    )
    grouping: str = setting(
        "inter", "what an advantage is relative to (`objective.GROUPINGS`)", choices=tuple(GROUPINGS), hot=True
    )
    mix: float = setting(0.25, "weight of the intra part in both", SHARE, hot=True)
    step_rewards: bool = setting(
        True, "a step gains what it adds to a net's quality; else all comes at the last step", hot=True
    )
    discount: float = setting(1.0, "of gains yet to come, in process", SHARE, hot=True)
    scale_rewards: str = setting("group", "whose deviation divides", choices=("group", "batch", "none"), hot=True)
    loss_type: str = setting("dapo", "how tokens are weighted (`objective.LOSS_TYPES`)", choices=tuple(LOSS_TYPES), hot=True)
    importance_sampling_level: str = setting("token", "of the ratio (`objective.LEVELS`)", choices=LEVELS, hot=True)
    epsilon: float = setting(0.2, "lower clip of the ratio", (1e-4, 1), hot=True)
    epsilon_high: float = setting(0.28, "upper clip", (1e-4, 10), hot=True)
    delta: float | None = setting(None, "bound of the unclipped branch (null: none)", (1, 1e4), hot=True)
    beta: float = setting(
        0.0, "weight of the KL to the reference policy, the one it started from (0: none is kept)", WEIGHT, hot=True
    )
    sync_ref_model: bool = setting(False, "the reference follows the learner", hot=True)
    ref_model_mixup_alpha: float = setting(0.6, "how far towards the learner", SHARE, hot=True)
    ref_model_sync_steps: int = setting(512, "how often", OFTEN, unit="updates", hot=True)
    num_iterations: int = setting(1, "passes over one sampling", (1, 100), hot=True)
    target_kl: float | None = setting(None, "KL at which further passes stop", (1e-9, 1e4), unit="nats a token", hot=True)
    action: str = setting("weights", "the next weights, or a latent code for each step", choices=("weights", "code"))
    code_dim: int = setting(128, "numbers of a latent code", (1, 1 << 20))
    trainable: str = setting("all", "which part of the policy learns", choices=PARTS)
    lora_rank: int = setting(8, "of trainable=lora", (1, 1 << 20))
    mixed: bool = setting(
        False, "every update holds prompts of all members of a family, instead of one member's in turn", hot=True
    )
    select: str = setting(
        "accuracy", "what the best policy is chosen by on val (last: by nothing)", choices=("accuracy", "reward", "last")
    )
    signal_every: int = setting(25, "how often half-batch agreement is measured (0: never)", (0, 1e9), unit="updates", hot=True)
    control: str | None = setting(None, "advantages of a negative control", choices=(None, *CONTROLS))
    val_seeds: int = setting(64, "unseen start weights that are validated on", (2, 1e6))
    stop_on_collapse: bool = setting(
        False, "end where outputs of different seeds come together, instead of a warning", hot=True
    )
    guard: GuardConfig = field(default_factory=GuardConfig)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(updates=600, validate_every=25, checkpoint_every=50))
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(learning_rate=1e-4, weight_decay=0.0, warmup=10, final_rate=0.2, ema=0.95)
    )

    def k_by_rollout(self, reward: RewardConfig) -> bool:
        """Whether K is drawn for each rollout: where a reward counts steps, one K per group would cancel in the advantages."""
        return self.steps_by == "rollout" or (self.steps_by is None and reward.needs("COUNTS_STEPS"))


@dataclass(frozen=True)
class Kinds:
    """What the rollouts of a run are."""

    example: bool
    net: bool

    def shares(self, reward: RewardConfig, example_hooks: Sequence[Hook], hooks: Sequence[Hook]) -> tuple[float, float]:
        """How much of an update's loss is of examples and of nets: as their rewards are weighted."""
        if not (self.example and self.net):
            return float(self.example), float(self.net)
        parts = (reward.of_examples, example_hooks), (reward.whole, hooks)
        each, whole = (sum(map(abs, [*terms.values(), *(hook.weight for hook in own)])) for terms, own in parts)
        return each / (whole + each), whole / (whole + each)


def kinds_of(config: GrpoConfig, reward: RewardConfig, policy: Policy, task: Task, has_hooks: bool) -> Kinds:
    """What rollouts are under these settings. Raises: InputError where they cannot be what is asked for."""
    reason = None if config.rollout == "net" else no_examples(config, policy, task)
    whole = has_hooks or bool(reward.whole)
    each = bool(reward.examples or reward.of_examples)
    if config.rollout == "example" and (reason or whole):
        name = f"reward.{next(iter(reward.whole))} is" if reward.whole else "functions of reward.python are"
        raise InputError(
            f"grpo.rollout=example: {reason or f'{name} of a whole net, not of an example'}; use grpo.rollout=null"
        )
    by_example = config.rollout != "net" and reason is None and each
    if any(member.variant for member in task.members) and (whole or not by_example):
        what = reason or "leave grpo.rollout at null, and rewards of whole nets out"
        raise InputError(f"nets of a task whose data have variants are rewarded by example: {what}")
    if reward.examples and not by_example:
        raise InputError(f"reward.examples needs rollouts by example: {reason or 'grpo.rollout=net was asked for'}")
    if config.noisy_layers not in (None, "all") and not by_example:
        raise InputError(f"grpo.noisy_layers={config.noisy_layers} is of rollouts by example: {reason or 'not of whole nets'}")
    return Kinds(by_example, whole or not by_example)


def check(config: GrpoConfig, reward: RewardConfig, policy: Policy, task: Task, has_hooks: bool = False) -> Kinds:
    """Refuse unsound settings before any work, with the reason; what the rollouts are."""
    check_settings("grpo", config)
    check_reward(reward, has_hooks)
    kinds = kinds_of(config, reward, policy, task, has_hooks)
    if reward.needs("NEEDS_PREDICTIONS") and any(m.data is not None and m.objective.kind != "classes" for m in task.members):
        raise InputError("a reward term in use reads class probabilities, which this task's nets do not give")
    if config.draws % 2:
        raise InputError(f"grpo.draws come in mirrored pairs, so their number is even, got {config.draws}")
    _check_sampling(config, policy)
    _check_loss(config, policy)
    if reward.step_cost and (config.steps_by == "group" or len(set(config.steps)) == 1):
        raise InputError("reward.step_cost is the same for a whole group, and cancels, unless K is drawn for each rollout")
    if config.select == "reward" and (has_hooks or reward.examples or not any(reward.weights.values())):
        raise InputError(
            "grpo.select=reward reads built-in terms only; with reward functions of your own choose accuracy or last"
        )
    if policy.code_dim and (config.action != "code" or config.code_dim != policy.code_dim):
        raise InputError(f"this policy acts through codes: set grpo.action=code grpo.code_dim={policy.code_dim}")
    if config.action == "code" and config.trainable != "all":
        raise InputError("grpo.action=code trains the code head alone: leave grpo.trainable at all")
    if config.mixed and len({member.data_set for member in task.members}) > 1:
        raise InputError("grpo.mixed scores all members on one minibatch, these have several data sets: pass grpo.mixed=false")
    if task.data is None and not task.joint:
        _check_rewards_alone(config, reward, has_hooks)
        return kinds
    if reward.bits and config.select == "accuracy":
        raise InputError("reward.bits is of rounded nets, grpo.select=accuracy of nets as they are: pass grpo.select=reward")
    for member in task.members:
        check_variation("reward", Variation(reward.input_noise, reward.warp), member.examples(reward.split)[0])
    return kinds


def _check_rewards_alone(config: GrpoConfig, reward: RewardConfig, has_hooks: bool) -> None:
    """Refuse what reads data, and rewards beside the task's own, for a task that has no data."""
    fixed = {"grouping": "inter", "sigma_by": "weight", "signal_every": 0, "mixed": False, "control": None}
    if config.steps_by == "rollout":
        raise InputError("a task of rewards alone needs grpo.steps_by=group, got rollout")
    plain = RewardConfig()
    if has_hooks or (other := [name for name, value in vars(reward).items() if value != getattr(plain, name)]):
        what = "reward functions of your own" if has_hooks else f"reward.{other[0]}"
        raise InputError(f"a task of rewards alone is rewarded by its own reward: leave {what} out, or write it into that")
    for name, only in fixed.items():
        if getattr(config, name) != only:
            raise InputError(f"a task of rewards alone needs grpo.{name}={str(only).lower()}, got {getattr(config, name)}")


def _check_sampling(config: GrpoConfig, policy: Policy) -> None:
    if config.mirrored and config.num_generations % 2:
        raise InputError(f"grpo.mirrored pairs rollouts: num_generations must be even, got {config.num_generations}")
    check_steps("grpo.steps", config.steps, policy)
    mine = ranks.own_share(config.prompts, "grpo.prompts")
    if config.apart and mine.stop - mine.start < 2:
        what = "grpo.apart compares nets of different seeds: grpo.prompts must be at least 2 a process"
        raise InputError(f"{what}, got {config.prompts}")
    if ranks.world() > 1 and config.current_states:
        raise InputError("grpo.current_states needs one process: which prompts it replaces depends on the whole update")
    if config.sigma_by == "role" and (config.action == "code" or policy.config.action.learn_sigma):
        raise InputError("grpo.sigma_by=role shares out a fixed noise of weights: not with grpo.action=code or a learned sigma")
    if config.sigma_by == "role" and config.sigma is None:
        raise InputError("grpo.sigma_by=role needs grpo.sigma: the noise of the role that rewards feel most")
    if any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in policy.modules()):
        raise InputError("the policy has dropout: the probability ratio would be noise")


def _check_loss(config: GrpoConfig, policy: Policy) -> None:
    if config.num_iterations > 1 and config.target_kl is None:
        raise InputError("grpo.num_iterations > 1 reuses old samples: set grpo.target_kl, the KL at which passes stop")
    if config.importance_sampling_level == "sequence" and config.loss_type != "grpo":
        warnings.warn("one ratio per sequence is meant for grpo.loss_type=grpo (GSPO, arXiv 2507.18071)", stacklevel=4)
    if config.delta is not None and not config.delta > 1 + config.epsilon_high:
        raise InputError(f"grpo.delta must lie above 1 + epsilon_high = {1 + config.epsilon_high}, got {config.delta}")
    if config.grouping == "both" and not check_mix(config.mix, min(config.steps), config.num_generations):
        raise InputError(f"grpo.mix = {config.mix} gives delayed effects the wrong sign: keep it below K·(1 − 1/G) for every K")
    if config.importance_sampling_level == "normalized" and policy.config.action.learn_sigma:
        raise InputError("grpo.importance_sampling_level=normalized is defined for a fixed sigma only")
