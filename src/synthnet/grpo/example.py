"""GRPO by example: each example of the minibatch sees its own draw of the action, and is a rollout of its own.

For rewards that are sums over examples, E_W[Σ R_n(W)] = Σ E[R_n(W_n)]: the objective is that of whole nets, where all examples
share one noise. What an example feels, and its score, is the matter of `felt.py`. The group of an example is its draws, in
mirrored pairs; its baseline is the mean of the other pairs. The chain of steps is one macro-action: the mean steps, noise on
the last; or what is passed on is drawn too (`chains.py`). Everything of GRPO holds on top: the ratio of a later pass is that of
the probabilities of what was felt, at inputs as they were recorded, over all layers together; the KL is that between Gaussians
over weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from synthnet.engine import Network, Variation, rounded
from synthnet.errors import InputError
from synthnet.grpo.agreement import half_batch_cosine, in_half
from synthnet.grpo.chains import LAST, Chains, Judge, draw_chains
from synthnet.grpo.draws import Draws, Score
from synthnet.grpo.felt import check_felt, feel, noisy_layers
from synthnet.grpo.hooks import ExampleHook
from synthnet.grpo.objective import APART, clip_shares, controlled, spread_figures, surrogate
from synthnet.grpo.score import RewardConfig, terms
from synthnet.grpo.scored import Seen
from synthnet.nets import shortfall
from synthnet.policy import Policy, Prompt, draw_prompt, rollout
from synthnet.runs import ranks
from synthnet.seeds import generator
from synthnet.tasks import Task

FLOOR = 1e-3  # of the root mean square of a prompt's advantages, which divides them
FIXED = {"action": "weights", "mirrored": True, "current_states": 0}  # what by example goes with


def no_examples(config, policy: Policy, task: Task) -> str | None:
    """Why rollouts cannot be examples, whatever the rewards; None where they can."""
    if task.data is None and not task.joint:
        return "a task of rewards alone has none"
    for name, only in FIXED.items():
        if getattr(config, name) != only:
            return f"they need grpo.{name}={str(only).lower()}, got {getattr(config, name)}"
    if config.grouping != "inter" and config.passed_on == "mean":
        return f"grpo.grouping={config.grouping} differs from inter only where steps pass draws on: pass grpo.passed_on=drawn"
    if policy.config.action.learn_sigma:
        return "they need a fixed sigma"
    try:
        for member in task.members:
            check_felt(member.network)
    except InputError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class Batch:
    """The examples of an update for one member: what it starts from, and for each start the mean weights [prompt weights] that
    were sampled around, what was felt, and the advantages [draw example]; the mean rewards [prompt], and what advantages were
    divided by, their root mean square [prompt]. chains: the drawn steps that led to the starts, if any did."""

    net: Network
    prompt: Prompt
    means: Tensor
    sigma: Tensor
    felt: list[Score]
    advantages: list[Tensor]
    rewards: Tensor
    sizes: Tensor
    metrics: dict[str, float]
    chains: Chains | None = None

    @property
    def group(self) -> int:
        """How many starts in a row are of one prompt of the update."""
        return self.chains.group if self.chains else 1

    def gradient(self, now: Tensor, config) -> tuple[Tensor, dict[str, float]]:
        """The estimate of the gradient of the clipped objective with respect to the mean weights [prompt weights] as they are
        now, over the root mean square of the advantages; and what to log."""
        found, stats = [], dict.fromkeys(("ratio/max", "clip_ratio/low_mean", "clip_ratio/high_mean"), 0.0)
        for mean, then, felt, advantages in zip(now, self.means, self.felt, self.advantages, strict=True):
            rows = advantages.flatten()
            if torch.equal(mean, then):  # the first pass: all ratios are 1, and none is clipped
                found.append(self.net.spec.scattered(felt.slope(rows / len(rows)), then))
                stats["ratio/max"] = max(stats["ratio/max"], 1.0)
                continue
            with torch.enable_grad():
                change = (mean - then).detach().requires_grad_()
                level = felt.level(self.net.spec.unflatten(change))[:, None]
                lost = surrogate(level, rows, config.epsilon, config.epsilon_high, config.delta).mean()
                found.append(-torch.autograd.grad(lost, change)[0])
            clips = clip_shares(level.detach(), rows[:, None], config.epsilon, config.epsilon_high)
            stats["ratio/max"] = max(stats["ratio/max"], level.max().exp().item())
            stats |= {name: stats[name] + share / len(now) for name, share in clips.items()}
        return torch.stack(found), stats


def sample_examples(
    policy: Policy,
    member: Task,
    prompt: Prompt,
    final: Tensor,
    config,
    reward: RewardConfig,
    hooks: Sequence[ExampleHook],
    drawn: Callable[[int], torch.Generator],
    layers: frozenset[str] | None = None,
) -> Batch:
    """Run the minibatch under own draws around the mean weights [prompt weights] of each prompt, and reward every example.
    `drawn`: a prompt's number -> the generator of its draws; `layers`: those that have noise, None for all."""
    net = member.network
    sigma = policy.log_sigma.detach().exp()[policy.layout(net).column_of] * policy.scale(net)
    felt, kept, sizes, rewards_PGN, parts = [], [], [], [], []
    for number, mean in enumerate(final.detach()):
        draw = drawn(number)
        images, labels = prompt.of_net(number)
        draws = Draws(config.draws, len(images), config.uses, draw, layers)
        used = rounded(net.spec, mean[None], reward.bits, draw)[0]  # by chance: the mean over many is the weights themselves
        outputs, score = feel(net, used, sigma, images, draws)
        seen = Seen(outputs, labels, net.objective)
        parts.append({"accuracy": seen.right.mean().item()})
        rewards_GN = rewards_of(seen, reward, hooks, parts[-1])
        felt.append(score)
        advantages, size = advantages_of(rewards_GN, config, draw)
        kept.append(advantages)
        sizes.append(size)
        rewards_PGN.append(rewards_GN)
    rewards_PGN = torch.stack(rewards_PGN)
    groups = rewards_PGN.transpose(1, 2).flatten(0, 1)  # an example's draws under one prompt
    metrics = {**mean_of(parts), **spread_figures(groups)}
    metrics["evaluations"] = float(len(final) * config.draws)
    return Batch(net, prompt, final.detach(), sigma, felt, kept, rewards_PGN.mean((1, 2)), torch.stack(sizes), metrics)


class Examples:
    """The examples of one update, and the loss of a pass over them."""

    def __init__(
        self,
        policy: Policy,
        members: Sequence[Task],
        wanted: Sequence[float],
        config,
        reward: RewardConfig,
        hooks: Sequence[ExampleHook],
        seed: int,
        update: int,
    ):
        """`wanted`: the aligned distance of each member that grpo.apart holds."""
        self.policy, self.config, self.wanted = policy, config, wanted
        self.batches, self._finals = [], []
        mine = ranks.own_share(config.prompts, "grpo.prompts")
        vary, drawn = Variation(reward.input_noise, reward.warp), (config.steps, config.prompts, reward.batch, seed, update)
        for turn, member in enumerate(members):
            prompt = draw_prompt("grpo", member, reward.split, policy.device, *drawn, vary=vary)
            prompt, net = prompt.share(mine), member.network
            n_steps, first = prompt.n_steps, turn * config.prompts + mine.start
            prompt, chains = draw_chains(policy, net, prompt, config, seed, update, first)
            row = mine.start * (chains.group if chains else 1)  # among those of all processes
            final = rollout(policy, prompt.start, prompt.n_steps, net, spec=prompt.spec)[-1]
            generators = lambda n, row=row, turn=turn: generator(seed, "grpo-example", update, row + n, turn)  # noqa: E731
            layers = noisy_layers(net, config.noisy_layers, generator(seed, "grpo-layers", update, turn))
            batch = sample_examples(policy, member, prompt, final, config, reward, hooks, generators, layers)
            batch.metrics["n_steps"] = float(n_steps)
            if config.passed_on == "drawn":
                share = LAST[config.grouping](n_steps, config.mix)
                batch = replace(batch, advantages=[share * each for each in batch.advantages])
            if chains:
                draw = generator(seed, "chain-control", update, first)
                judge = judge_of(net, prompt, chains.group, reward, hooks)
                batch = replace(batch, chains=chains.credited(batch.rewards, batch.sizes, judge, config, draw))
            self.batches.append(batch)
            self._finals.append(final)
        self.metrics = mean_of([batch.metrics for batch in self.batches])
        self.n_rollouts = sum(len(batch.means) * config.draws for batch in self.batches)

    def loss(self, reference: Policy | None = None) -> tuple[Tensor, dict[str, float]]:
        """The loss of a pass and what to log. No gradient passes through the target network: it ends in the mean weights that
        the policy gives, which take `Batch.gradient` for theirs."""
        finals, self._finals = self._finals or [self._run(batch) for batch in self.batches], []
        parts = [self._loss(*each, reference) for each in zip(self.batches, finals, self.wanted, strict=True)]
        return sum(lost for lost, _ in parts) / len(parts), {**self.metrics, **mean_of([stats for _, stats in parts])}

    def _run(self, batch: Batch, rows: slice | Tensor = slice(None), policy: Policy | None = None) -> Tensor:
        part = batch.prompt.share(rows)
        return rollout(policy or self.policy, part.start, part.n_steps, batch.net, spec=part.spec)[-1]

    def _loss(self, batch: Batch, final: Tensor, wanted: float, reference: Policy | None) -> tuple[Tensor, dict]:
        config, net = self.config, batch.net
        gradients, stats = batch.gradient(final, config)
        loss = -(gradients * final).sum() / len(final)
        per_token = 1 / (2 * len(final) * self.policy.layout(net).n_action_tokens)
        stats["kl_old"] = per_token * ((final.detach() - batch.means) / batch.sigma).square().sum().item()
        if reference is not None and config.beta:
            with torch.no_grad():
                held = self._run(batch, policy=reference)
            kl = per_token * ((final - held) / batch.sigma).square().sum()
            loss, stats["kl"] = loss + config.beta * kl, kl.item()
        if batch.chains:
            lost, more = batch.chains.loss(self.policy, reference, config, self.policy.layout(net).n_action_tokens)
            loss = loss + lost
            stats = {name: max(value, more.get(name, value)) for name, value in stats.items()}
        if config.apart:
            lack = shortfall(net.alignment, final[:: batch.group], APART * wanted)
            loss, stats["shortfall"] = loss + config.apart * lack, lack.item()
        return loss, stats

    def cosine(self) -> float:
        """Between the reward gradients of two halves of the prompts, at the first pass; no part of the update."""
        gradients = [batch.gradient(batch.means, self.config)[0] for batch in self.batches]

        def half(which: int) -> Tensor:
            total = 0.0
            for batch, gradient in zip(self.batches, gradients, strict=True):
                rows = in_half(len(gradient), batch.group, which)
                total = total - (gradient[rows] * self._run(batch, rows)).sum()
                if batch.chains:
                    tokens, mine = self.policy.layout(batch.net).n_action_tokens, batch.chains.half(which)
                    total = total + len(gradient) * mine.loss(self.policy, None, self.config, tokens)[0]
            return total

        cosine = half_batch_cosine(self.policy, half)
        self.policy.auxiliary_loss()  # these forwards, and the first one with them: the loss takes another
        self._finals = []
        return cosine


def judge_of(net: Network, prompt: Prompt, group: int, reward: RewardConfig, hooks: Sequence[ExampleHook]) -> Judge:
    """The mean reward of nets as they are on the examples of a prompt's rollouts."""

    def judge(number: int, nets: Tensor) -> Tensor:
        images, labels = prompt.of_net(number * group)
        with torch.no_grad():
            seen = Seen(net.logits(rounded(net.spec, nets, reward.bits), images), labels, net.objective)
            return rewards_of(seen, reward, hooks).mean(1)

    return judge


def mean_of(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over members."""
    return {name: sum(each[name] for each in metrics) / len(metrics) for name in metrics[0]}


def rewards_of(
    seen: Seen, reward: RewardConfig, hooks: Sequence[ExampleHook] = (), logged: dict[str, float] | None = None
) -> Tensor:
    """The reward of each example [draw example]: the terms that have a weight, and the user's own functions; the mean of each
    goes into `logged`."""
    found = torch.zeros(seen.outputs.shape[:2], device=seen.outputs.device)
    each = [(weight, name, terms()[name].each(seen)) for name, weight in reward.of_examples.items()]
    each += [(hook.weight, hook.name, hook(seen.outputs, seen.targets)) for hook in hooks]
    for weight, name, value in each:
        found = found + weight * value.to(found)
        if logged is not None:
            logged[f"rewards/{name}"] = value.mean().item()
    return found


def advantages_of(rewards_GN: Tensor, config, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Advantages [draw example] over their root mean square [], and that."""
    advantages_GN = others_baseline(rewards_GN)
    if config.control:
        advantages_GN = controlled(advantages_GN.t()[..., None], config.control, draw)[..., 0].t()
    size = advantages_GN.square().mean().sqrt().clamp_min(FLOOR)
    return advantages_GN / size, size


def others_baseline(rewards_GN: Tensor) -> Tensor:
    """Advantages [draw example]: each reward less the mean of the other pairs' of the same example. A mean with the own pair in
    it would bend the gradient beyond the first layer, where mirrored inputs are not mirrored."""
    pairs = rewards_GN.view(-1, 2, rewards_GN.shape[1]).sum(1)
    others = (pairs.sum(0) - pairs) / (len(rewards_GN) - 2)
    return rewards_GN - others.repeat_interleave(2, 0)
