"""The 5,000 MNIST images (28x28) and a CNN of 16 and 32 channels: 20,490 weights.

With `data_dir`: full MNIST or Fashion-MNIST.
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
    name: str = "mnist-simplecnn"
    channels: list[int] = setting([16, 32], "of each convolution")


def build(config: Config) -> Task:
    arch = Arch.of("cnn", side=28, channels=[1, *config.channels])
    return Task(name=config.name, arch=arch, data=Source(config.mnist, config.data_dir), recipe=Recipe(1e-3, 64, 12))
