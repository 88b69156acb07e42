"""Fashion-MNIST (28x28, IDX files in `data_dir`) and a CNN: 3x3 convolutions of 16 and 32 channels, each with ReLU and
max-pooling, and a Linear layer; 20,490 weights by default."""

from dataclasses import dataclass

from synthnet.engine import Recipe
from synthnet.nets import Arch
from synthnet.settings import setting
from synthnet.tasks.settings import DataConfig
from synthnet.tasks.source import Source
from synthnet.tasks.task import Task


@dataclass
class Config(DataConfig):
    name: str = "fashion-cnn"
    channels: list[int] = setting([16, 32], "of each convolution")


def build(config: Config) -> Task:
    return Task(
        name=config.name,
        arch=Arch.of("cnn", side=28, channels=[1, *config.channels]),
        data=Source("idx", config.data_dir),
        recipe=Recipe(1e-3, 64, 5),
    )
