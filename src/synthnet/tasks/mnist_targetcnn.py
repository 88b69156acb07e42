"""The 5,000 MNIST images (28x28) and the net of the original proof of concept: convolutions of 32 and 64 channels, Linear
layers of 128 and 10; 421,642 weights. With `data_dir`: full MNIST or Fashion-MNIST."""

from dataclasses import dataclass

from synthnet.arch import Arch
from synthnet.tasks import Recipe, Task


@dataclass
class Config:
    name: str = "mnist-targetcnn"
    split_seed: int = 0
    data_dir: str | None = None


def build(config: Config) -> Task:
    arch = Arch.of("cnn", side=28, channels=[1, 32, 64], hidden=[128])
    source = "idx" if config.data_dir else "mnist5k"
    return Task(config.name, arch, source, Recipe(1e-3, 64, 10), config.split_seed, config.data_dir)
