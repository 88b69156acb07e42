"""The pairs stage: empirical diffusion. Supervised on pairs of real weight states of many independent runs.

A chain W_i0 = W0 → … → W_iK = the clean state is drawn per example; one of its transitions is the pair. Nothing but the
steps left is told to the policy: neither epoch nor state index.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from synthnet.engine import Network, layer_errors
from synthnet.errors import InputError
from synthnet.policy import Policy, synth_steps
from synthnet.runs import Setup, ranks
from synthnet.seeds import generator
from synthnet.settings import COUNT, PATH, WEIGHT, check_settings, setting
from synthnet.tasks import Task
from synthnet.train.loop import STEPS, LoopConfig, OptimConfig, Run, check_steps
from synthnet.train.validation import Validation
from synthnet.train.zoo import Zoo

CHAINS = ("single", "short", "long", "skipped")
SOURCES = ("zoo", "corruptor", "both")
ROLL_IN = 0.5  # how often a later transition starts from what the policy itself made of the chain so far, to learn to mend it


@dataclass
class PairsConfig:
    """Settings of `synthnet pairs`."""

    single: float = setting(0.4, "relative frequency of chains W0 → W_final", WEIGHT, hot=True)
    short: float = setting(0.3, "of those with one or two states between", WEIGHT, hot=True)
    long: float = setting(0.1, "of those through every state", WEIGHT, hot=True)
    skipped: float = setting(0.2, "of those through a random half of the states", WEIGHT, hot=True)
    function: float = setting(
        2.0, "weight of the error in what each layer computes, beside that of the weights (0: weights only)", WEIGHT, hot=True
    )
    images: int = setting(128, "training images that it is measured on", COUNT, hot=True)
    batch: int = setting(64, "pairs an update", COUNT, hot=True)
    runs: int | None = setting(None, "of the zoo to learn from (null: all)", COUNT)
    source: str = setting("zoo", "of states: the runs' own, the corruptor's from their clean ones, or both", choices=SOURCES)
    corruptor: str | None = setting(None, "the corruptor's file or run directory", unit=PATH)
    val_seeds: int = setting(64, "unseen start weights that are validated on", (2, 1e6))
    val_steps: list[int] = setting([1, 2, 4], "the K that are validated", STEPS)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(updates=4000, validate_every=250, checkpoint_every=500))
    optim: OptimConfig = field(default_factory=OptimConfig)


def check_chains(config: PairsConfig) -> None:
    """Refuse frequencies of chains that nothing can be drawn from."""
    if not any(getattr(config, name) for name in CHAINS):
        raise InputError(f"pairs.{'/'.join(CHAINS)} must not all be zero")


def check_pairs(config: PairsConfig) -> None:
    """Refuse settings that the stage cannot work with, before any work."""
    check_settings("pairs", config)
    check_chains(config)
    ranks.own_share(config.batch, "pairs.batch")


def refuse_codes(policy: Policy) -> None:
    """Pairs are of weights: a policy whose actions are latent codes cannot be compared with them."""
    if policy.code_dim:
        raise InputError("this policy's actions are latent codes: pairs of weight states can only train one over weights")


def draw_chain(config: PairsConfig, n_states: int, k_max: int, draw: torch.Generator) -> list[int]:
    """The state indices of one chain, from 0 to the clean state n_states − 1, with at most k_max transitions."""
    shares = torch.tensor([getattr(config, name) for name in CHAINS], dtype=torch.float)
    kind = CHAINS[torch.multinomial(shares, 1, generator=draw).item()]
    between = torch.arange(1, n_states - 1)
    if kind == "single":
        inner = between[:0]
    elif kind == "short":
        n_inner = 1 + torch.randint(2, (1,), generator=draw).item()
        inner = between[torch.randperm(len(between), generator=draw)[:n_inner]]
    elif kind == "long":
        inner = between
    else:
        inner = between[torch.rand(len(between), generator=draw) < 0.5]
    if len(inner) > k_max - 1:
        inner = inner[torch.randperm(len(inner), generator=draw)[: k_max - 1]]
    return [0, *sorted(inner.tolist()), n_states - 1]


@dataclass
class PairBatch:
    """Transitions to learn: source and target weights [pair weights] in raw units, steps left [pair]; and where a pair starts
    from the policy's own chain, its start weights and the steps to take first (0: the run's own state is the source)."""

    source: Tensor
    target: Tensor
    steps_left: Tensor
    start: Tensor
    rollin_steps: Tensor


def draw_pairs(config: PairsConfig, states: Tensor, k_max: int, draw: torch.Generator) -> PairBatch:
    """A batch of transitions from a zoo's states [run state weights]."""
    runs = torch.randint(len(states), (config.batch,), generator=draw)
    sources, targets, left, rollin = [], [], [], []
    for _ in range(config.batch):
        chain = draw_chain(config, states.shape[1], k_max, draw)
        place = torch.randint(len(chain) - 1, (1,), generator=draw).item()
        own = place > 0 and torch.rand(1, generator=draw).item() < ROLL_IN
        sources.append(chain[place])
        targets.append(chain[place + 1])
        left.append(len(chain) - 1 - place)
        rollin.append(place if own else 0)
    return PairBatch(
        states[runs, torch.tensor(sources)],
        states[runs, torch.tensor(targets)],
        torch.tensor(left),
        states[runs, 0],
        torch.tensor(rollin),
    )


@torch.no_grad()
def roll_in(policy: Policy, batch: PairBatch, net: Network, scale: Tensor) -> Tensor:
    """The scaled sources [pair weights]: the run's state, or what the policy made of W0 in `rollin_steps` steps."""
    sources = batch.source / scale
    for taken in batch.rollin_steps.unique().tolist():
        if taken:
            rows = (batch.rollin_steps == taken).nonzero().squeeze(1)
            *_, made = synth_steps(policy, batch.start[rows] / scale, taken, net, left=batch.steps_left[rows] + taken)
            sources[rows] = made
    return sources


def pairs_loss(policy: Policy, batch: PairBatch, net: Network, function: float = 0.0, inputs: Tensor | None = None) -> Tensor:
    """Squared error of the mean action in scale units, averaged over weights and pairs (where sigma is learned: the negative
    log-likelihood per weight), plus `function` times the error of what each layer computes on `inputs` [example …]."""
    scale = policy.scale(net)
    sources, targets = roll_in(policy, batch, net, scale), batch.target / scale
    action = policy(sources, batch.steps_left, net)
    if policy.config.action.learn_sigma:
        loss = -action.log_prob(targets).mean() / net.spec.n_weights
    else:
        loss = (action.mean - targets).square().mean()
    if function:
        loss = loss + function * layer_errors(net, action.mean * scale, batch.target, inputs).mean()
    return loss


def move(batch: PairBatch, device: torch.device, rows: slice = slice(None)) -> PairBatch:
    """The batch, or some of its rows, on a device."""
    return PairBatch(*(value[rows].to(device) for value in vars(batch).values()))


def train_pairs(
    policy: Policy,
    task: Task,
    zoos: Sequence[Zoo],
    config: PairsConfig,
    setup: Setup,
    corrupt: Callable[[Tensor, Network], Tensor] | None = None,
) -> Path:
    """Run the stage on the zoos of the task's members; returns the path of the policy it wrote. Members take turns.
    `corrupt` makes other chains of the zoo's states [run state weights], for pairs.source."""
    refuse_codes(policy)
    check_pairs(config)
    if (config.source != "zoo") != (corrupt is not None):
        raise InputError("pairs.source=corruptor and both need pairs.corruptor=PATH, and pairs.source=zoo takes none")
    check_steps("pairs.val_steps", config.val_steps, policy)
    members, place = task.members, setup.place
    policy.to(place)
    states = [zoo.states("zoo", config.runs) for zoo in zoos]
    n_runs = sum(map(len, states))
    if config.source != "zoo":
        made = [corrupt(part, member.network) for part, member in zip(states, members, strict=True)]
        states = [torch.cat(both) for both in zip(states, made, strict=True)] if config.source == "both" else made
    heldout = [zoo.states("heldout")[:, [0, -1]].to(place) for zoo in zoos]
    validation = Validation.of_task(task, config.val_seeds, config.val_steps, place)

    def validate(average: Policy, progress: float) -> dict:
        distances = []
        for member, runs in zip(members, heldout, strict=True):
            scale = average.scale(member.network)
            predicted = average(runs[:, 0] / scale, 1, member.network).mean
            distances.append((predicted - runs[:, 1] / scale).square().sum(-1).mean().item())
        return {**validation(average), "heldout_distance": sum(distances) / len(distances)}

    policy.record |= {"task": members[0].name, "data": task.data_key, "corruptor": False}
    with Run(setup, policy, config, validate, {"pairs": config}, lambda: check_pairs(config)) as run:
        for update in run.updates():
            draw, turn = generator(setup.seed, "pairs", update), update % len(members)
            drawn = draw_pairs(config, states[turn], policy.config.k_max, draw)
            batch = move(drawn, place, ranks.own_share(config.batch, "pairs.batch"))
            inputs = members[turn].examples("train")[0]
            chosen = torch.randperm(len(inputs), generator=draw)[: config.images]
            run.step(pairs_loss(policy, batch, members[turn].network, config.function, inputs[chosen].to(place)), {})
        run.best.record["best_k"] = validation.best_steps(run.best)
        return run.finish({"zoo_runs": n_runs, "after": validation(run.best)})
