"""The 5,000 MNIST images (28x28) and a CNN of 16 and 32 channels: 20,490 weights.

With `data_dir`: full MNIST or Fashion-MNIST.
"""

from dataclasses import dataclass

from synthnet.arch import Arch
from synthnet.tasks import Recipe, Task


@dataclass
class Config:
    name: str = "mnist-simplecnn"
    split_seed: int = 0
    data_dir: str | None = None


def build(config: Config) -> Task:
    arch = Arch.of("cnn", side=28, channels=[1, 16, 32])
    source = "idx" if config.data_dir else "mnist5k"
    return Task(config.name, arch, source, Recipe(1e-3, 64, 12), config.split_seed, config.data_dir)
