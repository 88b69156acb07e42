"""A car too weak for its hill, which has to swing (Moore 1990), as Gymnasium's MountainCar-v0 has it."""

import torch
from torch import Tensor

from synthnet.tasks.plants.plant import Plant, chosen

LEFT, RIGHT, GOAL, FASTEST, FORCE, GRAVITY = -1.2, 0.6, 0.5, 0.07, 0.001, 0.0025


def begin(n: int, draw: torch.Generator) -> Tensor:
    place = torch.rand((n, 1), generator=draw, dtype=torch.float64) * 0.2 - 0.6
    return torch.cat([place, torch.zeros_like(place)], 1)


def advance(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """−1 for each step, until the flag; the left wall stops the car."""
    place, speed = state.unbind(-1)
    speed = (speed + FORCE * (action.double() - 1) - GRAVITY * (3 * place).cos()).clamp(-FASTEST, FASTEST)
    place = (place + speed).clamp(LEFT, RIGHT)
    speed = torch.where((place == LEFT) & (speed < 0), 0.0, speed)
    return torch.stack([place, speed], -1), -torch.ones_like(place), (place >= GOAL) & (speed >= 0)


def came(state: Tensor) -> Tensor:
    """How high up the right hill, as a share of the way from the valley to the flag."""
    return ((state[..., 0] + 0.5) / (GOAL + 0.5)).clamp(0, 1)


PLANT = Plant("MountainCar-v0", 2, 3, 200, begin, lambda state: state, chosen, advance, came, (0.3, 0.02), (-0.5, 0.0))
