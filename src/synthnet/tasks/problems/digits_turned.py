"""digits turned by an angle that the policy is told, in degrees, and never sees: 64-32-10."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from synthnet.engine import Recipe
from synthnet.nets import Arch
from synthnet.settings import setting
from synthnet.tasks.settings import DataConfig
from synthnet.tasks.source import Source
from synthnet.tasks.task import Task

FARTHEST = 60.0  # degrees, either way
SIDE = 8


@dataclass
class Config(DataConfig):
    name: str = "digits-turned"
    hidden: list[int] = setting([32], "sizes of the hidden layers")


def turned(inputs: Tensor, labels: Tensor, spec: Tensor) -> tuple[Tensor, Tensor]:
    """Images [example 64] turned counterclockwise by each net's angle [net 1]: [net example 64]; corners repeat the border."""
    angle = torch.deg2rad(spec[:, 0]).to(inputs)
    rows = [angle.cos(), -angle.sin(), torch.zeros_like(angle), angle.sin(), angle.cos(), torch.zeros_like(angle)]
    maps, n = torch.stack(rows, 1).view(-1, 2, 3), len(inputs)
    grid = F.affine_grid(maps, [len(spec), n, SIDE, SIDE], align_corners=False)
    pictures = inputs.view(1, n, SIDE, SIDE).expand(len(spec), -1, -1, -1)  # examples as channels: one grid for each net
    moved = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    return moved.flatten(2), labels.expand(len(spec), -1)


def build(config: Config) -> Task:
    arch = Arch.of("mlp", sizes=[SIDE * SIDE, *config.hidden, 10])
    data, spec = Source("digits", config.data_dir), {"angle": (-FARTHEST, FARTHEST)}
    return Task(name=config.name, arch=arch, data=data, recipe=Recipe(3e-3, 64, 40), spec=spec, variant=turned, named_only=True)
