"""The digits (8x8) and a small residual network: a stem of `width` channels, `blocks` blocks of two 3x3 convolutions with
GroupNorm around a residual addition, average pooling to `pool` x `pool`, and a Linear layer; 10,250 weights by default.

Pooled to 2x2, not 1x1: after GroupNorm, the mean of a channel over the whole image says next to nothing of an 8x8 digit.
"""

from dataclasses import dataclass

from synthnet.engine import Recipe
from synthnet.nets import Arch
from synthnet.settings import setting
from synthnet.tasks.settings import DataConfig
from synthnet.tasks.source import Source
from synthnet.tasks.task import Task


@dataclass
class Config(DataConfig):
    name: str = "digits-resnet"
    width: int = setting(16, "channels of the stem and of every block")
    blocks: int = setting(2, "how many")


def build(config: Config) -> Task:
    sizes = {"width": config.width, "blocks": config.blocks, "groups": 4, "pool": 2}
    return Task(
        name=config.name,
        arch=Arch.of("resnet", side=8, **sizes),
        data=Source("digits", config.data_dir),
        recipe=Recipe(1e-3, 64, 30),
    )
