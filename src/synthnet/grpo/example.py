"""GRPO by example: each example of the minibatch sees its own draw of the action, and is a rollout of its own.

For rewards that are sums over examples, E_W[Σ R_n(W)] = Σ E[R_n(W_n)]: the objective is that of whole nets, where all examples
share one noise. A Linear layer's own draw for each example need never be made: with mean weights M, b, noise of deviations S, s
and input h, what the example feels is exactly z = M h + b + √(h² S²ᵀ + s²) ∘ ξ (local reparameterisation: Kingma, Salimans and
Welling 2015, arXiv 1506.02557), and the score of the weights given z is ∇_M log p(z | h) = (ξ / sd) hᵀ. Conditioning on z (Rao
and Blackwell) leaves out all noise that the example did not feel: units count, not weights. The group of an example is its
draws, in mirrored pairs; its baseline is the mean of the other pairs. Exact where every weight is used once per example: chains
of Linear layers. The chain of steps is one macro-action: the mean steps, noise on the last.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from synthnet.engine import Variation, bounded
from synthnet.errors import InputError
from synthnet.grpo.objective import controlled, spread_figures
from synthnet.grpo.score import RewardConfig
from synthnet.nets import ACTIVATIONS, Chain, WeightSpec, shortfall
from synthnet.policy import Policy, draw_prompt, rollout
from synthnet.runs import ranks
from synthnet.seeds import generator
from synthnet.tasks import Task

BY_EXAMPLE = ("accuracy", "bounded_loss")  # terms that are means over examples
FLOOR = 1e-3  # of the root mean square of a prompt's advantages, which divides them
APART = 0.9  # how far apart nets of different seeds are held, as a share of SGD twins

Reward = Callable[[Tensor], Tensor]  # outputs [draw example class] -> rewards [draw example]


def check_example(config, reward: RewardConfig, policy: Policy, task: Task, has_hooks: bool) -> None:
    """Refuse what has no meaning, or is not built, by example. Raises: InputError."""
    if whole := [name for name, weight in reward.weights.items() if weight and name not in BY_EXAMPLE]:
        raise InputError(f"reward.{whole[0]} is of a whole net, not of an example: use grpo.rollout=net, or only {BY_EXAMPLE}")
    if has_hooks:
        raise InputError("reward functions of your own score whole nets: use grpo.rollout=net")
    if loose := [member.arch for member in task.members if member.network.chain is None]:
        raise InputError(
            f"grpo.rollout=example is exact for chains of Linear layers only, {loose[0]} is none: use grpo.rollout=net"
        )
    fixed = {"grouping": "inter", "action": "weights", "num_iterations": 1, "beta": 0, "mirrored": True, "mixed": False}
    for name, only in {**fixed, "current_states": 0}.items():
        if getattr(config, name) != only:
            raise InputError(f"grpo.rollout=example needs grpo.{name}={str(only).lower()}, got {getattr(config, name)}")
    if config.num_generations < 4 or policy.config.action.learn_sigma or ranks.world() > 1:
        raise InputError(
            "grpo.rollout=example needs two pairs of draws (num_generations of 4 or more), a fixed sigma, one process"
        )


def example_loss(
    policy: Policy, member: Task, config, reward: RewardConfig, wanted: float, seed: int, update: int
) -> tuple[Tensor, dict[str, float]]:
    """The loss of one update and what to log. No gradient passes through the target network: it ends in the mean weights that
    the policy gave, which take `example_gradient` for theirs. `wanted`: the aligned distance that grpo.apart holds."""
    vary, drawn = Variation(reward.input_noise, reward.warp), (config.steps, config.prompts, reward.batch, seed, update)
    n_steps, start, images, labels = draw_prompt("grpo", member, reward.split, policy.device, *drawn, vary=vary)
    net = member.network
    final = rollout(policy, start, n_steps, net)[-1]
    sigma = policy.log_sigma.detach().exp()[policy.layout(net).column_of] * policy.scale(net)
    score = lambda outputs: rewards_of(outputs, labels, reward, member.n_classes)  # noqa: E731
    gradients, rewards_PGN = [], []
    for number, mean in enumerate(final.detach()):
        draw = generator(seed, "grpo-example", update, number)
        gradient, rewards_GN = example_gradient(net.chain, net.spec, mean, sigma, images, score, config, draw)
        gradients.append(gradient)
        rewards_PGN.append(rewards_GN)
    loss = -(torch.stack(gradients) * final).sum() / len(final)
    groups = torch.stack(rewards_PGN).transpose(1, 2).flatten(0, 1)  # an example's draws under one prompt
    metrics = {**spread_figures(groups), "n_steps": float(n_steps), "evaluations": float(len(final) * config.num_generations)}
    if config.apart:
        lack = shortfall(net.alignment, final, APART * wanted)
        loss, metrics["shortfall"] = loss + config.apart * lack, lack.item()
    return loss, metrics


def rewards_of(outputs: Tensor, labels: Tensor, reward: RewardConfig, n_classes: int) -> Tensor:
    """The reward of each example [draw example] from its outputs [draw example class]."""
    labels = labels.expand(outputs.shape[:2])
    right = (outputs.argmax(-1) == labels).to(outputs)
    loss = F.cross_entropy(outputs.movedim(-1, 1), labels, reduction="none")
    return reward.accuracy * right + reward.bounded_loss * bounded(loss, n_classes).to(outputs)


@torch.no_grad()
def example_gradient(
    chain: Chain, spec: WeightSpec, mean: Tensor, sigma: Tensor, images: Tensor, score: Reward, config, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """An estimate of the gradient of the reward, mean over examples, with respect to one net's mean weights [weights] under
    noise of deviation sigma [weights], over the root mean square of the advantages; and the rewards [draw example]."""
    tensors, deviations = spec.unflatten(mean), spec.unflatten(sigma)
    seen, felt = images.expand(config.num_generations, *images.shape), []
    for layer in chain.layers:
        outputs, score_of_mean = _feel(layer, tensors, deviations, seen, draw)
        felt.append((layer, seen, score_of_mean))
        seen = ACTIVATIONS[layer.activation](outputs) if layer.activation else outputs
    rewards_GN = score(seen)
    advantages_GN = others_baseline(rewards_GN)
    if config.control:
        advantages_GN = controlled(advantages_GN.t()[..., None], config.control, draw)[..., 0].t()
    advantages_GN = advantages_GN / advantages_GN.square().mean().sqrt().clamp_min(FLOOR)
    found = {}
    for layer, inputs, score_of_mean in felt:
        weighed = (advantages_GN[..., None] * score_of_mean).flatten(0, 1) / advantages_GN.numel()
        found[layer.weight] = weighed.t() @ inputs.flatten(0, 1)
        if layer.bias:
            found[layer.bias] = weighed.sum(0)
    return spec.flatten(found), rewards_GN


def _feel(layer, tensors: dict, deviations: dict, seen: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pre-activations [draw example unit] of mirrored pairs of own draws, and ξ / sd: the score of what each unit's mean is."""
    bias, spread = (tensors[layer.bias], deviations[layer.bias].square()) if layer.bias else (0.0, 0.0)
    deviation = (seen.square() @ deviations[layer.weight].square().t() + spread).clamp_min(1e-24).sqrt()
    half = torch.randn((len(seen) // 2, *deviation.shape[1:]), generator=draw).to(seen)
    noise = torch.stack([half, -half], 1).flatten(0, 1)
    return seen @ tensors[layer.weight].t() + bias + deviation * noise, noise / deviation


def others_baseline(rewards_GN: Tensor) -> Tensor:
    """Advantages [draw example]: each reward less the mean of the other pairs' of the same example. A mean with the own pair in
    it would bend the gradient beyond the first layer, where mirrored inputs are not mirrored."""
    pairs = rewards_GN.view(-1, 2, rewards_GN.shape[1]).sum(1)
    others = (pairs.sum(0) - pairs) / (len(rewards_GN) - 2)
    return rewards_GN - others.repeat_interleave(2, 0)
