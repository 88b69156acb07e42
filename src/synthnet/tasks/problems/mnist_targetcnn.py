"""The 5,000 MNIST images (28x28) and the net of the original proof of concept: convolutions of 32 and 64 channels, Linear
layers of 128 and 10; 421,642 weights. With `data_dir`: full MNIST or Fashion-MNIST."""

from dataclasses import dataclass

from synthnet.engine import Recipe
from synthnet.nets import Arch
from synthnet.settings import setting
from synthnet.tasks.settings import DataConfig
from synthnet.tasks.source import Source
from synthnet.tasks.task import Task


@dataclass
class Config(DataConfig):
    name: str = "mnist-targetcnn"
    channels: list[int] = setting([32, 64], "of each convolution")
    hidden: list[int] = setting([128], "sizes of the hidden layers")


def build(config: Config) -> Task:
    arch = Arch.of("cnn", side=28, channels=[1, *config.channels], hidden=config.hidden)
    return Task(name=config.name, arch=arch, data=Source(config.mnist, config.data_dir), recipe=Recipe(1e-3, 64, 10))
