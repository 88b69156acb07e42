"""Two links hanging from a joint, swung up by a torque between them (Sutton 1996), as Gymnasium's Acrobot-v1 has it."""

import math

import torch
from torch import Tensor

from synthnet.tasks.plants.plant import Plant, chosen

GRAVITY, INERTIA, CENTRE, DT = 9.8, 1.0, 0.5, 0.2  # links of mass 1 and length 1
RANGES = {"mass": (0.5, 1.5), "torque": (0.75, 1.5), "motor": [-1.0, 1.0]}  # of the outer link; newton metres; which way
FASTEST = (4 * math.pi, 9 * math.pi)


def begin(n: int, draw: torch.Generator) -> Tensor:
    return torch.rand((n, 4), generator=draw, dtype=torch.float64) * 0.2 - 0.1


def observe(state: Tensor) -> Tensor:
    one, two, *speeds = state.unbind(-1)
    return torch.stack([one.cos(), one.sin(), two.cos(), two.sin(), *speeds], -1)


def _flow(state: Tensor, torque: Tensor, mass: Tensor | float) -> Tensor:
    """Its time derivative, as in Sutton and Barto's book, for an outer link of this mass."""
    one, two, speed, speed_two = state.unbind(-1)
    inner = 1 + CENTRE**2 + 2 * CENTRE * two.cos()
    d1, d2 = CENTRE**2 + mass * inner + 2 * INERTIA, mass * (CENTRE**2 + CENTRE * two.cos()) + INERTIA
    pull_two = mass * CENTRE * GRAVITY * (one + two - math.pi / 2).cos()
    swing = mass * CENTRE * two.sin()
    pull = -swing * speed_two.square() - 2 * swing * speed_two * speed
    pull = pull + (CENTRE + mass) * GRAVITY * (one - math.pi / 2).cos() + pull_two
    bend_two = (torque + d2 / d1 * pull - swing * speed.square() - pull_two) / (mass * CENTRE**2 + INERTIA - d2.square() / d1)
    return torch.stack([speed, speed_two, -(d2 * bend_two + pull) / d1, bend_two], -1)


def advance(
    state: Tensor, action: Tensor, mass: Tensor | float = 1.0, torque: Tensor | float = 1.0, motor: Tensor | float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """One Runge-Kutta step of fourth order; −1 for each, 0 for the one that brings the tip above the bar."""
    push = motor * torque * (action.double() - 1)
    k1 = _flow(state, push, mass)
    k2 = _flow(state + DT / 2 * k1, push, mass)
    k3 = _flow(state + DT / 2 * k2, push, mass)
    k4 = _flow(state + DT * k3, push, mass)
    moved = state + DT / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    angles = torch.remainder(moved[..., :2] + math.pi, 2 * math.pi) - math.pi
    speeds = [moved[..., 2 + i].clamp(-limit, limit) for i, limit in enumerate(FASTEST)]
    moved = torch.cat([angles, torch.stack(speeds, -1)], -1)
    over = height(moved) > 1
    return moved, over.double() - 1, over


def height(state: Tensor) -> Tensor:
    """Of the tip over the joint, in lengths of a link: from −2 to 2, the bar at 1."""
    return -state[..., 0].cos() - (state[..., 0] + state[..., 1]).cos()


def came(state: Tensor) -> Tensor:
    return ((height(state) + 2) / 3).clamp(0, 1)


def install(environment, told) -> None:
    """The names that Gymnasium has for these numbers."""
    push = told.get("torque", 1.0) * told.get("motor", 1.0)
    environment.AVAIL_TORQUE = [-push, 0.0, push]
    environment.LINK_MASS_2 = told.get("mass", 1.0)


PLANT = Plant("Acrobot-v1", 6, 3, 500, begin, observe, chosen, advance, came, ranges=RANGES, install=install)
