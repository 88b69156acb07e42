"""Rewards measured: sequences of weight states on one minibatch that all rollouts of an update share.

A reward term is a file of `rewards/`: a function `reward(scored) -> [R]`, higher is better; the trainer adds them up by weight.
It may set WEIGHT (its default, else 0), NEEDS_STEPS (every state of a sequence is scored, not only the last), NEEDS_PREDICTIONS
(class probabilities of the last states are kept), NEEDS_COPIES (the last states are scored on noisy copies of the images too),
NEEDS_HEALTH (dead units and collapsed layers of the last states are counted) or COUNTS_STEPS (so K is drawn for each rollout,
or it could not move an advantage). A net with non-finite weights or loss gets a term's FLOOR. BEST: the most that it can give,
if not 1. A term that is a mean over examples also says what one of them adds: `each(seen) -> [draw example]`.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, make_dataclass, replace
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor, nn

from synthnet.engine import LARGEST_WARP, Network, Variation, leading, predictions, quality, rounded
from synthnet.engine import score as score_nets
from synthnet.errors import InputError
from synthnet.grpo import rewards
from synthnet.grpo.hooks import Hook, ask_all
from synthnet.grpo.sample import Rollouts
from synthnet.grpo.scored import Scored, join
from synthnet.nets import init_scale
from synthnet.seeds import generator
from synthnet.settings import check_settings, option, options, setting

SICK_IMAGES = 64  # on how many images a unit must stay silent to count as dead
COLLAPSED = 0.05  # root mean square in scale units below which a layer counts as collapsed (a uniform start has 0.58)


@lru_cache(maxsize=1)
def terms() -> dict[str, ModuleType]:
    """Term name -> its file."""
    return {name: option(rewards, name, "reward term") for name in options(rewards)}


def needs(weights: Mapping[str, float], what: str) -> bool:
    """Whether any term with weight sets such a flag: NEEDS_… or COUNTS_STEPS."""
    return any(getattr(terms()[name], what, False) for name, weight in weights.items() if weight)


def total(scored: Scored, weights: Mapping[str, float]) -> tuple[Tensor, dict[str, float]]:
    """The weighted sum [R], float64, and the mean of each term that has a weight."""
    found = {}
    for name in (name for name, weight in weights.items() if weight):
        value, floor = terms()[name].reward(scored).double(), getattr(terms()[name], "FLOOR", None)
        found[name] = value if floor is None else torch.where(scored.finite, value, floor)
    reward = torch.zeros(len(scored.accuracy), dtype=torch.float64)
    for name, value in found.items():
        reward = reward + weights[name] * value
    return reward, {f"rewards/{name}": value.mean().item() for name, value in found.items()}


@dataclass
class _RewardConfig:
    """The weight of each reward term (one file each in `rewards/`), and what they are measured on."""

    split: str = setting("train+reward", "whose images, joined with +")
    batch: int = setting(512, "images, which all rollouts of an update share", (2, 10_000_000), hot=True)
    input_noise: float = setting(0.0, "on images, in standard deviations of pixels", (0, 10), hot=True)
    warp: float = setting(0.0, "affine maps of images (`Variation`)", (0, LARGEST_WARP), hot=True)
    copies: int = setting(3, "noisy copies of the images, for robustness", (1, 100), hot=True)
    copy_noise: float = setting(0.5, "on the copies", (0, 10), hot=True)
    bits: int | None = setting(
        None, "of the rewarded nets' weights, which are rounded (`engine/quantised.py`; null: they are not)", (2, 16), hot=True
    )
    dtype: str = setting("float32", "what the rewarded nets compute in", choices=("float32", "bfloat16"), hot=True)
    python: list[str] = setting([], "reward functions of your own, as FILE.py:FUNCTION (`hooks.py`)")
    python_weights: list[float] = setting([], "their weights")
    examples: list[str] = setting([], "functions (outputs, targets) -> reward of each example, as FILE.py:FUNCTION, by example")
    examples_weights: list[float] = setting([], "their weights")

    @property
    def weights(self) -> dict[str, float]:
        """Term name -> weight."""
        return {name: getattr(self, name) for name in terms()}

    @property
    def of_examples(self) -> dict[str, float]:
        """The terms with a weight that each example has by itself."""
        return {name: weight for name, weight in self.weights.items() if weight and hasattr(terms()[name], "each")}

    @property
    def whole(self) -> dict[str, float]:
        """The terms with a weight that only a whole net has."""
        return {name: weight for name, weight in self.weights.items() if weight and not hasattr(terms()[name], "each")}

    @property
    def of_nets(self) -> "RewardConfig":
        """The same without what examples have by themselves."""
        return replace(self, examples=[], **dict.fromkeys(self.of_examples, 0.0))

    def needs(self, what: str) -> bool:
        """Whether any term with weight sets such a flag: NEEDS_… or COUNTS_STEPS."""
        return needs(self.weights, what)


def _weight(term: ModuleType):
    help = " ".join(term.__doc__.split("\n\n")[0].split())
    return setting(getattr(term, "WEIGHT", 0.0), help[0].lower() + help[1:], (-1e3, 1e3), hot=True)


RewardConfig = make_dataclass(
    "RewardConfig", [(name, float, _weight(term)) for name, term in terms().items()], bases=(_RewardConfig,)
)


def check_reward(reward: RewardConfig, has_hooks: bool = False) -> None:
    """Refuse rewards that cannot be measured."""
    check_settings("reward", reward)
    if not all(map(math.isfinite, reward.python_weights)) or not (any(reward.weights.values()) or has_hooks):
        raise InputError(f"reward weights must be finite and not all zero, got {reward.weights}")


def score(
    rollouts: Sequence[Rollouts],
    images: Tensor,
    labels: Tensor,
    reward: RewardConfig,
    by_step: bool,
    hooks: Sequence[Hook],
    seed: int,
    update: int,
) -> tuple[Tensor, Scored, dict[str, float]]:
    """Rewards [R] of an update's rollouts, float64, on one minibatch that all share; what was measured; and what to log. The
    built-in terms and the user's own functions add up; NaN where nothing at all applied to a rollout."""
    parts = [measure(part, images, labels, reward, by_step, generator(seed, "copies", update)) for part in rollouts]
    scored = join(parts, [part.cohort.rows for part in rollouts])
    rewards_R, metrics = total(scored, reward.weights)
    if hooks:
        state, columns = {"update": update, "n_classes": scored.n_classes}, {"images": images, "labels": labels}
        figures = scored.accuracy[:, -1].tolist(), scored.loss[:, -1].tolist()
        asked, logged = ask_all(hooks, [in_use(part, reward) for part in rollouts], *figures, state, columns)
        applies = torch.full(rewards_R.shape, any(reward.weights.values())) | ~asked.isnan()
        rewards_R, metrics = torch.where(applies, rewards_R + asked.nan_to_num(0.0), torch.nan), {**metrics, **logged}
    return rewards_R, scored, metrics


def in_use(rollouts: Rollouts, reward: RewardConfig) -> Rollouts:
    """Sequences as their nets are used: rounded to the bits that rewards are of."""
    if not reward.bits:
        return rollouts
    spec = rollouts.cohort.net.spec
    return replace(rollouts, states=[rounded(spec, state, reward.bits) for state in rollouts.states])


def step_gains(scored: Scored, rewards_R: Tensor, step_rewards: bool) -> Tensor:
    """What each step gained [R K], NaN beyond a rollout's last: in quality, and at the last step whatever else the reward
    holds; or, without step rewards, all of the reward at the last step. Sums over steps differ from the reward by W0's quality
    alone, which a group shares."""
    n_steps, quality = scored.n_steps[:, None], scored.quality()
    index = torch.arange(scored.accuracy.shape[1] - 1)
    gains, rest = quality.diff(dim=1), rewards_R[:, None] - quality[:, -1:]
    if not step_rewards:
        gains, rest = torch.zeros_like(gains), rewards_R[:, None]
    gains = gains + torch.where(index == n_steps - 1, rest, 0.0)
    return torch.where(index < n_steps, gains, torch.nan)


@torch.no_grad()
def measure(
    rollouts: Rollouts, images: Tensor, labels: Tensor, reward: RewardConfig, steps: bool, draw: torch.Generator
) -> Scored:
    """The sequences of a cohort on one minibatch; without `steps`, their last states alone.

    W0 is scored once for each prompt. `draw`: where the noise of copies comes from.
    """
    cohort, used = rollouts.cohort, in_use(rollouts if steps else replace(rollouts, states=rollouts.states[-1:]), reward)
    net, dtype = cohort.net, getattr(torch, reward.dtype)
    scale, final = init_scale(net.spec).to(images.device), used.states[-1]
    kept = used.states
    accuracies, losses = [], []
    for number, state in enumerate(kept[:-1]):
        times = cohort.group if number == 0 else 1
        found = score_nets(net, state[::times], images, labels, dtype=dtype)
        accuracies.append(found[0].repeat_interleave(times))
        losses.append(found[1].repeat_interleave(times))
    probabilities = None
    if reward.needs("NEEDS_PREDICTIONS"):
        probabilities = predictions(net, final.to(dtype), images.to(dtype)).float().cpu()
    last = (
        score_nets(net, final, images, labels, dtype=dtype) if probabilities is None else _score_of(probabilities, labels.cpu())
    )
    accuracies, losses = [*accuracies, last[0]], [*losses, last[1]]
    norms = [_rms(state / scale) for state in kept]
    moved = [_rms((after - before) / scale) for before, after in itertools.pairwise(kept)]
    n_rollouts = len(final)
    return Scored(
        net.n_classes,
        *(torch.stack(part, 1) for part in (accuracies, losses, norms)),
        torch.stack(moved, 1) if moved else torch.zeros(n_rollouts, 0),
        torch.full((n_rollouts,), cohort.n_steps),
        cohort.prompt + torch.arange(len(cohort.start)).repeat_interleave(cohort.group),
        labels.cpu(),
        probabilities,
        _copies(net, final, images, labels, reward, draw) if reward.needs("NEEDS_COPIES") else None,
        illness(net, final, images[:SICK_IMAGES], scale) if reward.needs("NEEDS_HEALTH") else None,
        net.objective.chance,
    )


def _score_of(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy and cross-entropy of each net from its class probabilities [net example class], as `engine.score` gives."""
    right = probabilities.gather(-1, labels.expand(probabilities.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    return (probabilities.argmax(-1) == labels).double().mean(-1), -right.clamp_min(1e-30).log().double().mean(-1)


def _rms(values: Tensor) -> Tensor:
    return values.square().mean(1).sqrt().cpu()


def _copies(net: Network, final: Tensor, images: Tensor, labels: Tensor, reward: RewardConfig, draw) -> Tensor:
    """Quality [R copy] on noisy copies of the images."""
    found = []
    for _ in range(reward.copies):
        noisy = Variation(reward.copy_noise)(images, draw)
        found.append(quality(*score_nets(net, final, noisy, labels, dtype=getattr(torch, reward.dtype)), net.objective.chance))
    return torch.stack(found, 1)


def illness(net: Network, nets: Tensor, images: Tensor, scale: Tensor) -> Tensor:
    """Share of hidden units that no image [example …] excites plus share of weight tensors that have collapsed, of each net.

    A unit counts as dead where its layer's output is never positive: meant for ReLU nets. The last layer has none. Networks
    that torch.fx cannot trace count no dead units.
    """
    tensors = net.spec.unflatten(nets)
    scales = net.spec.unflatten(scale[None])
    names = [name for name, value in tensors.items() if value.ndim > 2]
    rms = torch.stack([(tensors[name] / scales[name]).square().flatten(1).mean(1).sqrt() for name in names])
    collapsed = (rms < COLLAPSED).double().mean(0).cpu()
    silent: list[Tensor] = []

    def watch(_: str, module: nn.Module, again) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d):
            out = leading(again(tensors), len(nets))
            if out.ndim == 5:  # a convolution's [net example channel height width]
                out = out.flatten(3).amax(-1)
            silent.append((out.flatten(1, -2).amax(1) <= 0).double())

    if net.batched is None:
        return collapsed
    net.batched(tensors, images, watch=watch)
    hidden = silent[:-1]
    return collapsed + torch.cat(hidden, 1).mean(1).cpu() if hidden else collapsed
