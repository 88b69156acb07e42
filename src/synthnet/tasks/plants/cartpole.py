"""A pole on a cart, pushed left or right (Barto, Sutton and Anderson 1983), as Gymnasium's CartPole-v1 has it."""

import math

import torch
from torch import Tensor

from synthnet.tasks.plants.plant import Plant, chosen

GRAVITY, CART, POLE, LENGTH, FORCE, TAU = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
FARTHEST, STEEPEST = 2.4, 12 * math.pi / 180


def begin(n: int, draw: torch.Generator) -> Tensor:
    return torch.rand((n, 4), generator=draw, dtype=torch.float64) * 0.1 - 0.05


def advance(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Euler steps; a reward of 1 for each, the last one too."""
    place, speed, angle, turning = state.unbind(-1)
    sin, cos, total = angle.sin(), angle.cos(), CART + POLE
    felt = (FORCE * (2 * action - 1) + POLE * LENGTH * turning.square() * sin) / total
    bend = (GRAVITY * sin - cos * felt) / (LENGTH * (4 / 3 - POLE * cos.square() / total))
    push = felt - POLE * LENGTH * bend * cos / total
    moved = torch.stack([place + TAU * speed, speed + TAU * push, angle + TAU * turning, turning + TAU * bend], -1)
    over = (moved[..., 0].abs() > FARTHEST) | (moved[..., 2].abs() > STEEPEST)
    return moved, torch.ones_like(place), over


PLANT = Plant("CartPole-v1", 4, 2, 500, begin, lambda state: state, chosen, advance)
