"""The corrupt stage: phase 1 of empirical diffusion, optional. A model that takes a clean state back towards its start.

It is a policy like any other, trained on the same chains read backwards: W_final → … → W0, told the steps left. What it makes
of clean states (`corrupted_states`) can stand beside or in place of a zoo's own noisier states in the pairs stage.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from synthnet.device import choose_device
from synthnet.engine.network import Network
from synthnet.policy.action import standard_noise
from synthnet.policy.policy import Policy
from synthnet.policy.rollout import rollout
from synthnet.runs.lab import LabConfig
from synthnet.runs.live import Live
from synthnet.runs.tracking import open_run
from synthnet.seeds import generator
from synthnet.tasks.task import Task
from synthnet.train.loop import LoopConfig, OptimConfig, train
from synthnet.train.pairs import PairsConfig, check_chains, draw_pairs, move, pairs_loss, refuse_codes
from synthnet.train.snapshot import finish
from synthnet.train.zoo import Zoo


@dataclass
class CorruptConfig:
    """Settings of `synthnet corrupt`; the chains are those of the pairs settings, backwards."""

    batch: int = 64
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(updates=1000, validate_every=250, checkpoint_every=250))
    optim: OptimConfig = field(default_factory=OptimConfig)


@torch.no_grad()
def corrupted_states(corruptor: Policy, clean: Tensor, n_states: int, net: Network, seed: int) -> Tensor:
    """Chains [run state weights] that end at clean states [run weights], each earlier state drawn by the corruptor from the
    next."""
    noise = lambda step: standard_noise(tuple(clean.shape), generator(seed, "corrupt-noise", step), clean.device)  # noqa: E731
    back = rollout(corruptor, clean, n_states - 1, net, noise)
    return torch.stack([*reversed(back), clean], dim=1)


@torch.no_grad()
def heldout_errors(corruptor: Policy, heldout: Tensor, net: Network) -> dict[str, float]:
    """How far one step back from the clean states of unseen runs [run state weights] ends from their true starts, as a share of
    how far the clean states are; and the same for the answer 'all zeros'."""
    scale = corruptor.scale(net)
    start, clean = heldout[:, 0] / scale, heldout[:, -1] / scale
    made = corruptor(clean, 1, net).mean
    away = (clean - start).square().sum(-1).mean()
    return {
        "start_error": ((made - start).square().sum(-1).mean() / away).item(),
        "start_error_of_zeros": (start.square().sum(-1).mean() / away).item(),
    }


def train_corrupt(
    corruptor: Policy,
    task: Task,
    zoos: Sequence[Zoo],
    config: CorruptConfig,
    pairs: PairsConfig,
    run_dir: str | Path,
    config_yaml: str,
    seed: int,
    device: str = "auto",
    lab: LabConfig | None = None,
) -> Path:
    """Run the stage on the task's members in turn; returns the path of the corruptor it wrote."""
    refuse_codes(corruptor)
    live = Live("corrupt", {"corrupt": config}, lab)
    check_chains(pairs)
    place, members = choose_device(device), task.members
    corruptor.to(place)
    states = [zoo.states("zoo", pairs.runs).flip(1) for zoo in zoos]
    heldout = [zoo.states("heldout").to(place) for zoo in zoos]

    def step(update: int, learner: Policy) -> Iterator[tuple[Tensor, dict]]:
        turn, settings = update % len(members), replace(pairs, batch=config.batch, function=0.0)
        batch = draw_pairs(settings, states[turn], learner.config.k_max, generator(seed, "corrupt", update))
        yield pairs_loss(learner, move(batch, place), members[turn].network), {}

    def validate(average: Policy, progress: float) -> dict:
        found = [heldout_errors(average, runs, member.network) for member, runs in zip(members, heldout, strict=True)]
        means = {name: sum(row[name] for row in found) / len(found) for name in found[0]}
        return {**means, "score": -means["start_error"]}

    corruptor.record |= {"task": members[0].name, "data": task.data_key, "corruptor": True}
    with open_run(run_dir, config_yaml, lab) as run:
        best = train(run, f"corrupt {task.name}", corruptor, config, step, validate, live)
        return finish(run, best, "corrupt", {"seed": seed, "val": validate(best, 1.0)})
