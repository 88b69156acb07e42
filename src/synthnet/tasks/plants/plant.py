"""A plant simulated for many controllers at once: all nets from the same starts, and what each of them earned."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from synthnet.engine import Nets, Variants
from synthnet.errors import unknown
from synthnet.tasks.plants.gym import play, shown

STARTS = 8  # that one draw of a return averages over


class Episodes(NamedTuple):
    """What each episode returned, how far it came at most, and its steps [net start]."""

    returns: Tensor
    came: Tensor
    lengths: Tensor

    def shaped(self, horizon: int) -> Tensor:
        return (self.returns + 0.01 * horizon * self.came).mean(1)


@dataclass(frozen=True)
class Plant:
    """One environment: its name in Gymnasium, sizes, and its dynamics for states [net start number], float64.

    begin: draws states [start number]; observe: what the environment shows; origin and units: what is taken from it and what it
    is then divided by, before a net sees it; mirror: the signs of what is observed where the plant is the same in a mirror: a
    net is then asked both ways round, and half the difference counts; act: what outputs [net start output] do; advance: the
    next states, their rewards and whether they end [net start]; came: how far a state is on the way, from 0 to 1, where returns
    alone tell nothing of nets that never arrive. ranges: what may differ from plant to plant, numbers that `advance` takes by
    name; `install` gives Gymnasium's own environment such numbers. spec: those that do differ, here.
    """

    environment: str
    n_inputs: int
    n_outputs: int
    horizon: int
    begin: Callable[[int, torch.Generator], Tensor]
    observe: Callable[[Tensor], Tensor]
    act: Callable[[Tensor], Tensor]
    advance: Callable[..., tuple[Tensor, Tensor, Tensor]]
    came: Callable[[Tensor], Tensor] | None = None
    units: tuple[float, ...] | float = 1.0
    origin: tuple[float, ...] | float = 0.0
    mirror: tuple[float, ...] | None = None
    metric: str = "return"
    ranges: Mapping[str, tuple | list] = field(default_factory=dict)
    install: Callable[[object, Mapping[str, float]], None] | None = None
    spec: Variants | None = None
    starts: int = STARTS

    def differing(self, names: list[str]) -> "Plant":
        """Such plants that differ in these numbers. Raises: InputError for one that they cannot differ in."""
        if wrong := [name for name in names if name not in self.ranges]:
            raise unknown("number that plants differ in", wrong[0], self.ranges)
        return replace(self, spec=Variants.of({name: self.ranges[name] for name in names}))

    def told(self, nets: Nets) -> dict[str, Tensor]:
        """The numbers in which each net's plant differs, by name [net 1]."""
        if self.spec is None:
            return {}
        return {name: nets.spec[:, i : i + 1] for i, name in enumerate(self.spec.names)}

    def __call__(self, nets: Nets, draw: torch.Generator) -> Tensor:
        """The mean return of each net [net] over the starts that are drawn."""
        return self.simulate(nets, draw)[0].mean(1)

    def shaped(self, nets: Nets, draw: torch.Generator) -> Tensor:
        """As returns, and a hundredth of the horizon for how far each episode came, which breaks the ties of nets that never
        arrive and cannot outweigh arriving a few steps sooner."""
        return self.simulate(nets, draw).shaped(self.horizon)

    def simulate(self, nets: Nets, draw: torch.Generator, n_starts: int | None = None) -> Episodes:
        """What each net does from the starts that are drawn, the same for all."""
        start = self.begin(n_starts or self.starts, draw).to(nets.device)
        start = start.expand(len(nets), *start.shape)
        returns = torch.zeros(start.shape[:2], dtype=torch.float64, device=start.device)
        best, lengths, going = torch.zeros_like(returns), torch.zeros_like(returns), torch.ones_like(returns)
        for state, reward, alive in self.steps(nets, start):
            returns, lengths, going = returns + reward, lengths + going, alive.double()
            best = best if self.came is None else torch.maximum(best, self.came(state))
        return Episodes(returns, best, lengths)

    @torch.no_grad()
    def steps(self, nets: Nets, state: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """After each step from states [net start number]: the states, what it paid and which episodes go on [net start]; to the
        horizon, or until none goes on. What is over stays where it ended, and earns nothing."""
        alive, told = torch.ones(state.shape[:2], dtype=torch.bool, device=state.device), self.told(nets)
        for _ in range(self.horizon):
            moved, reward, over = self.advance(state, self.decide(nets, self.observe(state)), **told)
            state, reward, alive = torch.where(alive[..., None], moved, state), torch.where(alive, reward, 0.0), alive & ~over
            yield state, reward, alive
            if not alive.any():
                return

    @property
    def inputs(self) -> dict:
        """What a net is given, and whether both ways round, as JSON."""
        told = shown(self.environment, self.n_inputs)
        if self.origin != 0.0 or self.units != 1.0:
            each = lambda given: list(given) if isinstance(given, tuple) else [given] * self.n_inputs  # noqa: E731
            told |= {"subtracted": each(self.origin), "divided_by": each(self.units)}
        return told | ({"mirror": list(self.mirror)} if self.mirror else {})

    def decide(self, nets: Nets, observed: Tensor) -> Tensor:
        """The actions of nets that observe this [net start number]."""
        outputs = nets(self.see(observed).float()).double()
        if self.mirror is not None:
            outputs = (outputs - nets(self.see(observed * observed.new_tensor(self.mirror)).float()).double()) / 2
        return self.act(outputs)

    def see(self, observed: Tensor) -> Tensor:
        """What a net is given of what the environment shows."""
        return (observed - observed.new_tensor(self.origin)) / observed.new_tensor(self.units)

    def play(self, nets: Nets, seeds: list[int]) -> Tensor:
        """Returns in Gymnasium's own environment [net episode], an episode for each seed. Raises: InputError where it is not
        installed."""
        return play(self.environment, nets, seeds, self.decide, self._install)

    def _install(self, environment: object, spec: Tensor) -> None:
        """Make Gymnasium's own environment the plant of one net's spec [number]."""
        if self.spec is not None and self.install is not None:
            self.install(environment, dict(zip(self.spec.names, spec.tolist(), strict=True)))


def chosen(outputs: Tensor) -> Tensor:
    """Of several actions the one with the largest output."""
    return outputs.argmax(-1)
