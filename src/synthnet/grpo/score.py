"""Rewards measured: sequences of weight states on one minibatch that all rollouts of an update share."""

import itertools
import math
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor, nn

from synthnet.engine.network import Network, predictions, score
from synthnet.engine.stacks import leading
from synthnet.engine.variation import Variation
from synthnet.errors import InputError, at_least
from synthnet.grpo.rewards import Scored, needs, quality, terms
from synthnet.grpo.sample import Cohort
from synthnet.nets.start import init_scale

SICK_IMAGES = 64  # on how many images a unit must stay silent to count as dead
COLLAPSED = 0.05  # root mean square in scale units below which a layer counts as collapsed (a uniform start has 0.58)


@dataclass
class RewardConfig:
    """The weight of each reward term (one file each in `rewards/`), measured on `batch` images of `split` that all rollouts of
    an update share.

    input_noise, warp: how the images are varied, once per update (`variation.Variation`); it keeps the reward from saturating
    on images that the policy's nets already classify. copies, copy_noise: for robustness, how many noisy copies and how noisy.
    dtype: what the rewarded nets compute in, float32 or bfloat16. python: reward functions of your own as FILE.py:FUNCTION, and
    python_weights: theirs (`reward_hook.py` has the signature).
    """

    accuracy: float = 0.5
    bounded_loss: float = 0.5
    gain: float = 0.0
    efficiency: float = 0.0
    step_cost: float = 0.0
    stability: float = 0.0
    robustness: float = 0.0
    diversity: float = 0.0
    worst_class: float = 0.0
    calibration: float = 0.0
    split: str = "train+reward"
    batch: int = 512
    input_noise: float = 0.0
    warp: float = 0.0
    copies: int = 3
    copy_noise: float = 0.5
    dtype: str = "float32"
    python: list[str] = field(default_factory=list)
    python_weights: list[float] = field(default_factory=list)

    @property
    def weights(self) -> dict[str, float]:
        """Term name -> weight."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name in terms()}

    def needs(self, what: str) -> bool:
        return needs(self.weights, what)


def check_reward(reward: RewardConfig, has_hooks: bool = False) -> None:
    """Refuse rewards that cannot be measured."""
    at_least(2, "reward", reward, "batch")
    at_least(1, "reward", reward, "copies")
    at_least(0, "reward", reward, "input_noise", "copy_noise")
    weights = reward.weights.values()
    if not all(math.isfinite(weight) for weight in [*weights, *reward.python_weights]) or not (any(weights) or has_hooks):
        raise InputError(f"reward weights must be finite and not all zero, got {reward.weights}")
    if reward.dtype not in ("float32", "bfloat16"):
        raise InputError(f"reward.dtype must be float32 or bfloat16, got {reward.dtype!r}")


@torch.no_grad()
def measure(
    cohort: Cohort,
    states: list[Tensor],
    images: Tensor,
    labels: Tensor,
    reward: RewardConfig,
    steps: bool,
    draw: torch.Generator,
) -> Scored:
    """The sequences W0..WK (each [rollout weights]) of a cohort on one minibatch; without `steps`, their last states alone.

    W0 is scored once for each prompt. `draw`: where the noise of copies comes from.
    """
    net, dtype = cohort.net, getattr(torch, reward.dtype)
    scale, final = init_scale(net.spec).to(images.device), states[-1]
    kept = states if steps else [final]
    accuracies, losses = [], []
    for number, state in enumerate(kept[:-1]):
        times = cohort.group if number == 0 else 1
        found = score(net, state[::times], images, labels, dtype=dtype)
        accuracies.append(found[0].repeat_interleave(times))
        losses.append(found[1].repeat_interleave(times))
    probabilities = None
    if reward.needs("NEEDS_PREDICTIONS"):
        probabilities = predictions(net, final.to(dtype), images.to(dtype)).float().cpu()
    last = score(net, final, images, labels, dtype=dtype) if probabilities is None else _score_of(probabilities, labels.cpu())
    accuracies, losses = [*accuracies, last[0]], [*losses, last[1]]
    norms = [_rms(state / scale) for state in kept]
    moved = [_rms((after - before) / scale) for before, after in itertools.pairwise(kept)]
    n_rollouts = len(final)
    return Scored(
        net.module.n_classes,
        *(torch.stack(part, 1) for part in (accuracies, losses, norms)),
        torch.stack(moved, 1) if moved else torch.zeros(n_rollouts, 0),
        torch.full((n_rollouts,), cohort.n_steps),
        cohort.prompt + torch.arange(len(cohort.start)).repeat_interleave(cohort.group),
        labels.cpu(),
        probabilities,
        _copies(net, final, images, labels, reward, draw) if reward.needs("NEEDS_COPIES") else None,
        illness(net, final, images[:SICK_IMAGES], scale) if reward.needs("NEEDS_HEALTH") else None,
    )


def _score_of(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy and cross-entropy of each net from its class probabilities [net example class], as `functional.score` gives."""
    right = probabilities.gather(-1, labels.expand(probabilities.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    return (probabilities.argmax(-1) == labels).double().mean(-1), -right.clamp_min(1e-30).log().double().mean(-1)


def _rms(values: Tensor) -> Tensor:
    return values.square().mean(1).sqrt().cpu()


def _copies(net: Network, final: Tensor, images: Tensor, labels: Tensor, reward: RewardConfig, draw) -> Tensor:
    """Quality [rollout copy] on noisy copies of the images."""
    found = []
    for _ in range(reward.copies):
        noisy = Variation(reward.copy_noise)(images, draw)
        found.append(quality(*score(net, final, noisy, labels, dtype=getattr(torch, reward.dtype)), net.module.n_classes))
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
