"""The corrupt stage: phase 1 of empirical diffusion, optional. A model that takes a clean state back towards its start.

It is a policy like any other, trained on the same chains read backwards: W_final → … → W0, told the steps left. What it makes
of clean states (`corrupted_states`) can stand beside or in place of a zoo's own noisier states in the pairs stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from synthnet.engine import Network
from synthnet.policy import Policy, rollout, standard_noise, with_noise
from synthnet.runs import Setup
from synthnet.seeds import generator
from synthnet.settings import COUNT, check_settings, setting
from synthnet.tasks import Task
from synthnet.train.loop import LoopConfig, OptimConfig, Run
from synthnet.train.pairs import PairsConfig, check_chains, draw_pairs, move, pairs_loss, refuse_codes
from synthnet.train.zoo import Zoo


@dataclass
class CorruptConfig:
    """Settings of `synthnet corrupt`; the chains are those of the pairs settings, backwards."""

    batch: int = setting(64, "pairs an update", COUNT, hot=True)
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(updates=1000, validate_every=250, checkpoint_every=250))
    optim: OptimConfig = field(default_factory=OptimConfig)


@torch.no_grad()
def corrupted_states(corruptor: Policy, clean: Tensor, n_states: int, net: Network, seed: int) -> Tensor:
    """Chains [run state weights] that end at clean states [run weights], each earlier state drawn by the corruptor from the
    next."""
    noise = lambda step: standard_noise(tuple(clean.shape), generator(seed, "corrupt-noise", step), clean.device)  # noqa: E731
    back = rollout(corruptor, clean, n_states - 1, net, with_noise(noise))
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
    corruptor: Policy, task: Task, zoos: Sequence[Zoo], config: CorruptConfig, pairs: PairsConfig, setup: Setup
) -> Path:
    """Run the stage on the task's members in turn; returns the path of the corruptor it wrote."""
    refuse_codes(corruptor)
    check_settings("corrupt", config)
    check_chains(pairs)
    place, members = setup.place, task.members
    corruptor.to(place)
    states = [zoo.states("zoo", pairs.runs).flip(1) for zoo in zoos]
    heldout = [zoo.states("heldout").to(place) for zoo in zoos]

    def validate(average: Policy, progress: float) -> dict:
        found = [heldout_errors(average, runs, member.network) for member, runs in zip(members, heldout, strict=True)]
        means = {name: sum(row[name] for row in found) / len(found) for name in found[0]}
        return {**means, "score": -means["start_error"]}

    corruptor.record |= {"task": members[0].name, "data": task.data_key, "corruptor": True}
    with Run(setup, corruptor, config, validate, {"corrupt": config}) as run:
        for update in run.updates():
            turn, settings = update % len(members), replace(pairs, batch=config.batch)
            batch = draw_pairs(settings, states[turn], corruptor.config.k_max, generator(setup.seed, "corrupt", update))
            run.step(pairs_loss(corruptor, move(batch, place), members[turn].network), {})
        return run.finish({"after": validate(run.best, 1.0)})
