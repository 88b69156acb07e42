"""The pairs stage: empirical diffusion. Supervised on pairs of real weight states of many independent runs.

A chain W_i0 = W0 → … → W_iK = the clean state is drawn per example; one of its transitions is the pair. Nothing but the
steps left is told to the policy: neither epoch nor state index.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from synthnet.device import choose_device
from synthnet.engine.network import Network, layer_errors
from synthnet.errors import InputError, at_least
from synthnet.policy.policy import Policy
from synthnet.runs import ranks
from synthnet.runs.lab import LabConfig
from synthnet.runs.live import Live
from synthnet.runs.tracking import open_run
from synthnet.seeds import generator
from synthnet.tasks.task import Task
from synthnet.train.loop import LoopConfig, OptimConfig, check_steps, train
from synthnet.train.snapshot import finish
from synthnet.train.validation import Validation
from synthnet.train.zoo import Zoo

CHAINS = ("single", "short", "long", "skipped")


@dataclass
class PairsConfig:
    """Settings of `synthnet pairs`.

    single, short, long, skipped: relative frequencies of the chains W0→W_final; with one or two states between; through every
    state; through a random half of the states. rollin: how often a transition starts from what the policy itself made of the
    chain so far, not from the run's own state, so that later steps learn to correct earlier ones. function: weight of the
    error in what each layer computes on `images` training images, beside the plain error of the weights (0: weights only).
    source: zoo (the runs' own states), corruptor (chains that the corruptor at `corruptor` makes of their clean states) or
    both.
    """

    single: float = 0.4
    short: float = 0.3
    long: float = 0.1
    skipped: float = 0.2
    rollin: float = 0.5
    function: float = 2.0
    images: int = 128
    batch: int = 64
    runs: int | None = None
    source: str = "zoo"
    corruptor: str | None = None
    val_seeds: int = 64
    val_steps: list[int] = field(default_factory=lambda: [1, 2, 4])
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(updates=4000, validate_every=250, checkpoint_every=500))
    optim: OptimConfig = field(default_factory=OptimConfig)


def check_chains(config: PairsConfig) -> None:
    """Refuse frequencies of chains that nothing can be drawn from."""
    shares = [getattr(config, name) for name in CHAINS]
    if min(shares) < 0 or not any(shares):
        raise InputError(f"pairs.{'/'.join(CHAINS)} must not be negative and not all zero, got {shares}")


def check_pairs(config: PairsConfig) -> None:
    """Refuse settings that the stage cannot work with, before any work."""
    check_chains(config)
    if config.source not in ("zoo", "corruptor", "both"):
        raise InputError(f"pairs.source must be zoo, corruptor or both, got {config.source!r}")
    at_least(2, "pairs", config, "val_seeds")
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
        own = place > 0 and torch.rand(1, generator=draw).item() < config.rollin
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
        if taken == 0:
            continue
        rows = (batch.rollin_steps == taken).nonzero().squeeze(1)
        state = batch.start[rows] / scale
        for done in range(taken):
            state = policy(state, batch.steps_left[rows] + taken - done, net).mean
        sources[rows] = state
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
    run_dir: str | Path,
    config_yaml: str,
    seed: int,
    device: str = "auto",
    lab: LabConfig | None = None,
    corrupt: Callable[[Tensor, Network], Tensor] | None = None,
) -> Path:
    """Run the stage on the zoos of the task's members; returns the path of the policy it wrote. Members take turns.
    `corrupt` makes other chains of the zoo's states [run state weights], for pairs.source."""
    refuse_codes(policy)
    live = Live("pairs", {"pairs": config}, lab, lambda: check_pairs(config))
    check_pairs(config)
    if (config.source != "zoo") != (corrupt is not None):
        raise InputError("pairs.source=corruptor and both need pairs.corruptor=PATH, and pairs.source=zoo takes none")
    check_steps("pairs.val_steps", config.val_steps, policy)
    place = choose_device(device)
    policy.to(place)
    members = task.members
    states = [zoo.states("zoo", config.runs) for zoo in zoos]
    n_runs = sum(map(len, states))
    if config.source != "zoo":
        made = [corrupt(part, member.network) for part, member in zip(states, members, strict=True)]
        states = [torch.cat(both) for both in zip(states, made, strict=True)] if config.source == "both" else made
    heldout = [zoo.states("heldout")[:, [0, -1]].to(place) for zoo in zoos]
    validation = Validation.of_task(task, config.val_seeds, config.val_steps, place)

    def step(update: int, learner: Policy) -> Iterator[tuple[Tensor, dict]]:
        draw, turn = generator(seed, "pairs", update), update % len(members)
        drawn, mine = draw_pairs(config, states[turn], learner.config.k_max, draw), ranks.own_share(config.batch, "pairs.batch")
        batch = move(drawn, place, mine)
        inputs = members[turn].data("train")[0]
        chosen = torch.randperm(len(inputs), generator=draw)[: config.images]
        yield pairs_loss(learner, batch, members[turn].network, config.function, inputs[chosen].to(place)), {}

    def validate(average: Policy, progress: float) -> dict:
        distances = []
        for member, runs in zip(members, heldout, strict=True):
            scale = average.scale(member.network)
            predicted = average(runs[:, 0] / scale, 1, member.network).mean
            distances.append((predicted - runs[:, 1] / scale).square().sum(-1).mean().item())
        return {**validation(average), "heldout_distance": sum(distances) / len(distances)}

    policy.record |= {"task": members[0].name, "data": task.data_key, "corruptor": False}
    with open_run(run_dir, config_yaml, lab) as run:
        best = train(run, f"pairs {task.name}", policy, config, step, validate, live)
        best.record["best_k"] = validation.best_steps(best)
        return finish(run, best, "pairs", {"seed": seed, "zoo_runs": n_runs, "val": validation(best)})
