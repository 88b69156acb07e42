"""The 5,000 MNIST images of mnist5k-mlp pooled to 14x14, and a CNN: 3x3 convolutions of 8 and 16 channels, each with ReLU and
max-pooling, and a Linear layer; 2,698 weights by default. `pools`: how many max-poolings, whatever the number of convolutions.
With `data_dir`: full MNIST or Fashion-MNIST, pooled alike.
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
    name: str = "mnist5k-cnn"
    channels: list[int] = setting([8, 16], "of each convolution")
    pools: int | None = setting(None, "max-poolings, whatever the number of convolutions (null: one after each)")


def build(config: Config) -> Task:
    pools = {} if config.pools is None else {"pools": config.pools}
    arch = Arch.of("cnn", side=14, channels=[1, *config.channels], **pools)
    return Task(name=config.name, arch=arch, data=Source(config.mnist, config.data_dir, 14), recipe=Recipe(2e-3, 64, 12))
