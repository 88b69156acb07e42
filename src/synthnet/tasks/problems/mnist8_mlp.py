"""The 5,000 MNIST images averaged down to 8x8, and the net of digits-mlp: the same net for other images."""

from dataclasses import dataclass

from synthnet.engine import Recipe
from synthnet.nets import Arch
from synthnet.settings import setting
from synthnet.tasks.settings import DataConfig
from synthnet.tasks.source import Source
from synthnet.tasks.task import Task


@dataclass
class Config(DataConfig):
    name: str = "mnist8-mlp"
    hidden: list[int] = setting([32], "sizes of the hidden layers")


def build(config: Config) -> Task:
    arch = Arch.of("mlp", sizes=[64, *config.hidden, 10])
    return Task(
        name=config.name, arch=arch, data=Source(config.mnist, config.data_dir, 8), recipe=Recipe(3e-3, 64, 20), named_only=True
    )
