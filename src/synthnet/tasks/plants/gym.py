"""Gymnasium's environments: where controllers are judged, and any environment by its name as a task of its own."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from synthnet.engine import Nets
from synthnet.errors import InputError, missing_extra, said

LARGEST_SEED = 2**31 - 1


def gymnasium():
    """The library. Raises: InputError, naming the extra, where it is not installed."""
    try:
        import gymnasium
    except ImportError as error:
        raise missing_extra("gymnasium", "control") from error
    return gymnasium


def make(environment: str, times: int = 1) -> list:
    """So many of an environment. Raises: InputError where there is none of that name, or its packages are missing."""
    library = gymnasium()
    try:
        return [library.make(environment) for _ in range(times)]
    except (library.error.Error, ImportError) as error:  # packages of its own may be missing
        raise InputError(f"Gymnasium cannot make {environment}: {said(error)}") from error


def shown(environment: str, n_inputs: int) -> dict:
    """What a net is given that sees an environment as it is, as JSON."""
    return {"data": f"what Gymnasium's {environment} shows", "shape": [n_inputs]}


@torch.no_grad()
def play(
    environment: str,
    nets: Nets,
    seeds: list[int],
    decide: Callable[[Nets, Tensor], Tensor],
    install: Callable[[object, Tensor], None] = lambda environment, spec: None,
) -> Tensor:
    """Returns [net episode] of each net from the start of each seed, to the environment's own end or time limit.

    decide: nets and what is observed [net episode number] -> actions, as the environment takes them. install: makes an
    environment the plant that a net's spec [number] says. All episodes go on together, so nets run as one population.
    """
    n_nets, n_seeds = len(nets), len(seeds)
    environments = make(environment, n_nets * n_seeds)
    if nets.spec is not None:
        for index, each in enumerate(environments):
            install(each.unwrapped, nets.spec[index // n_seeds])
    seen = np.stack([each.reset(seed=seeds[index % n_seeds])[0] for index, each in enumerate(environments)])
    returns, alive = np.zeros(len(environments)), np.ones(len(environments), dtype=bool)
    while alive.any():
        observed = torch.as_tensor(seen, dtype=torch.float32).view(n_nets, n_seeds, -1)
        actions = decide(nets, observed).cpu().flatten(0, 1).numpy()
        for index in np.flatnonzero(alive):
            seen[index], reward, ended, cut, _ = environments[index].step(actions[index])
            returns[index] += reward
            alive[index] = not (ended or cut)
    for each in environments:
        each.close()
    return torch.from_numpy(returns).view(n_nets, n_seeds)


@dataclass(frozen=True)
class GymPlant:
    """Any environment of Gymnasium with observations and actions that are vectors, or actions that are one of several."""

    environment: str
    n_inputs: int
    n_outputs: int
    low: Tensor | None = field(default=None, compare=False)  # of actions that are numbers
    high: Tensor | None = field(default=None, compare=False)
    metric: str = "return"
    starts: int = 4
    first: int = 0  # of actions that are one of several

    @classmethod
    def of(cls, environment: str) -> "GymPlant":
        """Raises: InputError for one that is not installed, or of another kind."""
        (one,) = make(environment)
        spaces = gymnasium().spaces
        seen, acts = one.observation_space, one.action_space
        one.close()
        if not (isinstance(seen, spaces.Box) and len(seen.shape) == 1):
            raise InputError(f"{environment} gives {seen}: expected a vector of numbers")
        if isinstance(acts, spaces.Discrete):
            return cls(environment, seen.shape[0], int(acts.n), first=int(acts.start))
        if not (isinstance(acts, spaces.Box) and len(acts.shape) == 1):
            raise InputError(f"{environment} takes {acts}: expected one of several actions, or a vector of numbers")
        return cls(
            environment, seen.shape[0], acts.shape[0], *(torch.as_tensor(each).double() for each in (acts.low, acts.high))
        )

    @property
    def inputs(self) -> dict:
        """What a net is given, as JSON."""
        return shown(self.environment, self.n_inputs)

    def decide(self, nets: Nets, observed: Tensor) -> Tensor:
        """The actions of nets that observe this [net episode number], on the CPU, where the environment is."""
        return self.act(nets(observed).double().cpu())

    def act(self, outputs: Tensor) -> Tensor:
        if self.low is None:
            return outputs.argmax(-1) + self.first
        return outputs.clamp(self.low, self.high).float()

    def __call__(self, nets: Nets, draw: torch.Generator) -> Tensor:
        """The mean return of each net [net] over a few starts."""
        seeds = torch.randint(LARGEST_SEED, (self.starts,), generator=draw).tolist()
        return self.play(nets, seeds).mean(1)

    def play(self, nets: Nets, seeds: list[int]) -> Tensor:
        """Returns [net episode], an episode for each seed."""
        return play(self.environment, nets, seeds, self.decide)
