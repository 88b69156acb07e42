"""The digits (8x8) and a small residual network: a stem of `width` channels, two blocks of two 3x3 convolutions with GroupNorm
around a residual addition, global average pooling and a Linear layer; 9,770 weights by default."""

from dataclasses import dataclass

from synthnet.arch import Arch
from synthnet.tasks import Recipe, Task
from synthnet.tasks._data import DataConfig


@dataclass
class Config(DataConfig):
    name: str = "digits-resnet"
    width: int = 16
    blocks: int = 2
    groups: int = 4


def build(config: Config) -> Task:
    arch = Arch.of("resnet", side=8, width=config.width, blocks=config.blocks, groups=config.groups)
    return Task(config.name, arch, "digits", Recipe(1e-3, 64, 30))
