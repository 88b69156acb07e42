"""A pole on a cart, pushed left or right (Barto, Sutton and Anderson 1983), as Gymnasium's CartPole-v1 has it."""

import math

import torch
from torch import Tensor

from synthnet.tasks.plants.plant import Plant, chosen

GRAVITY, CART, POLE, LENGTH, FORCE, TAU = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
RANGES = {  # half the pole's, in metres; newtons; which way; where the cart should stand, in metres
    "length": (0.25, 1.0),
    "force": (5.0, 15.0),
    "motor": [-1.0, 1.0],
    "target": (-1.2, 1.2),
}
NEAR = 1.0  # metres from the target, from where on a step pays nothing
FARTHEST, STEEPEST = 2.4, 12 * math.pi / 180


def begin(n: int, draw: torch.Generator) -> Tensor:
    return torch.rand((n, 4), generator=draw, dtype=torch.float64) * 0.1 - 0.05


def advance(
    state: Tensor,
    action: Tensor,
    length: Tensor | float = LENGTH,
    force: Tensor | float = FORCE,
    motor: Tensor | float = 1.0,
    target: Tensor | float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Euler steps; a reward of 1 for each, the last one too, or, where there is a target, of as much as the cart is near it."""
    place, speed, angle, turning = state.unbind(-1)
    sin, cos, total = angle.sin(), angle.cos(), CART + POLE
    felt = (motor * force * (2 * action - 1) + POLE * length * turning.square() * sin) / total
    bend = (GRAVITY * sin - cos * felt) / (length * (4 / 3 - POLE * cos.square() / total))
    push = felt - POLE * length * bend * cos / total
    moved = torch.stack([place + TAU * speed, speed + TAU * push, angle + TAU * turning, turning + TAU * bend], -1)
    over = (moved[..., 0].abs() > FARTHEST) | (moved[..., 2].abs() > STEEPEST)
    pays = torch.ones_like(place) if target is None else nearness(moved[..., 0], target).clamp_min(0)
    return moved, pays, over


def nearness(place, target):
    """1 at the target, 0 at the edge of what pays; of numbers or tensors."""
    return 1 - abs(place - target) / NEAR


def install(environment, told) -> None:
    """The names that Gymnasium has for these numbers; what it pays, where there is a target."""
    if "target" in told:
        step = environment.step

        def paid(action):
            observed, _, *rest = step(action)
            return observed, max(nearness(float(observed[0]), told["target"]), 0.0), *rest

        environment.step = paid
    environment.length = told.get("length", LENGTH)
    environment.polemass_length = environment.masspole * environment.length
    environment.force_mag = told.get("force", FORCE) * told.get("motor", 1.0)


PLANT = Plant("CartPole-v1", 4, 2, 500, begin, lambda state: state, chosen, advance, ranges=RANGES, install=install)
