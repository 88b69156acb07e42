"""The 5,000 MNIST images (28x28) and the net of the original proof of concept: convolutions of 32 and 64 channels, Linear
layers of 128 and 10; 421,642 weights. With `data_dir`: full MNIST or Fashion-MNIST."""

from dataclasses import dataclass, field

from synthnet.nets.arch import Arch
from synthnet.tasks.settings import DataConfig
from synthnet.tasks.task import Recipe, Task


@dataclass
class Config(DataConfig):
    name: str = "mnist-targetcnn"
    channels: list[int] = field(default_factory=lambda: [32, 64])
    hidden: list[int] = field(default_factory=lambda: [128])


def build(config: Config) -> Task:
    arch = Arch.of("cnn", side=28, channels=[1, *config.channels], hidden=config.hidden)
    return Task(config.name, arch, config.mnist, Recipe(1e-3, 64, 10))
