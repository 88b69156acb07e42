"""A pendulum swung up and held by a bounded torque, as Gymnasium's Pendulum-v1 has it.

It is the same seen in a mirror, and a net is asked both ways round: what it does on one side it does on the other, and one
torque for ever, which is where returns alone lead all nets that may (LOG, 1 December 2026), is none.
"""

import math

import torch
from torch import Tensor

from synthnet.tasks.plants.plant import Plant

GRAVITY, DT, STRONGEST, FASTEST = 10.0, 0.05, 2.0, 8.0  # mass 1, length 1
FULL = 0.1  # the output that asks for the strongest torque, which balancing takes at a tenth of a radian


def begin(n: int, draw: torch.Generator) -> Tensor:
    unit = torch.rand((n, 2), generator=draw, dtype=torch.float64) * 2 - 1
    return unit * torch.tensor([math.pi, 1.0], dtype=torch.float64)


def observe(state: Tensor) -> Tensor:
    angle, speed = state.unbind(-1)
    return torch.stack([angle.cos(), angle.sin(), speed], -1)


def act(outputs: Tensor) -> Tensor:
    """An output of a tenth or more is the strongest torque."""
    return (STRONGEST / FULL * outputs).clamp(-STRONGEST, STRONGEST)


def advance(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Minus the squared angle from upright, a tenth of the squared speed and a thousandth of the squared torque; no end."""
    angle, speed = state.unbind(-1)
    torque = action[..., 0]
    upright = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
    reward = -(upright.square() + 0.1 * speed.square() + 0.001 * torque.square())
    speed = (speed + DT * (1.5 * GRAVITY * angle.sin() + 3 * torque)).clamp(-FASTEST, FASTEST)
    return torch.stack([angle + DT * speed, speed], -1), reward, torch.zeros_like(angle, dtype=torch.bool)


PLANT = Plant("Pendulum-v1", 3, 1, 200, begin, observe, act, advance, units=(1.0, 1.0, 4.0), mirror=(1.0, -1.0, -1.0))
