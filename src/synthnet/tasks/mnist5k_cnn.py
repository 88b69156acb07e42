"""The 5,000 MNIST images of mnist5k-mlp pooled to 14x14, and a CNN: 3x3 convolutions of 8 and 16 channels, each with ReLU and
max-pooling, and a Linear layer; 2,698 weights by default. With `data_dir`: full MNIST or Fashion-MNIST, pooled alike.
"""

from dataclasses import dataclass, field

from synthnet.arch import Arch
from synthnet.tasks import Recipe, Task


@dataclass
class Config:
    name: str = "mnist5k-cnn"
    channels: list[int] = field(default_factory=lambda: [8, 16])
    split_seed: int = 0
    data_dir: str | None = None


def build(config: Config) -> Task:
    arch = Arch.of("cnn", side=14, channels=[1, *config.channels])
    source = "idx" if config.data_dir else "mnist5k"
    return Task(config.name, arch, source, Recipe(2e-3, 64, 12), config.split_seed, config.data_dir, pool=2)
