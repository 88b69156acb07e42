"""The 5,000 MNIST images (28x28) and the net of the original proof of concept: convolutions of 32 and 64 channels, Linear
layers of 128 and 10; 421,642 weights. With `data_dir`: full MNIST or Fashion-MNIST."""

from dataclasses import dataclass

from synthnet.arch import Arch
from synthnet.tasks import Recipe, Task
from synthnet.tasks._data import DataConfig


@dataclass
class Config(DataConfig):
    name: str = "mnist-targetcnn"


def build(config: Config) -> Task:
    arch = Arch.of("cnn", side=28, channels=[1, 32, 64], hidden=[128])
    return Task(config.name, arch, config.mnist, Recipe(1e-3, 64, 10))
