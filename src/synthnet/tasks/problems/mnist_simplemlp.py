"""The 5,000 MNIST images (28x28) and an MLP 784-128-10: 101,770 weights. With `data_dir`: full MNIST or Fashion-MNIST."""

from dataclasses import dataclass

from synthnet.engine import Recipe
from synthnet.nets import Arch
from synthnet.settings import setting
from synthnet.tasks.settings import DataConfig
from synthnet.tasks.source import Source
from synthnet.tasks.task import Task


@dataclass
class Config(DataConfig):
    name: str = "mnist-simplemlp"
    hidden: list[int] = setting([128], "sizes of the hidden layers")


def build(config: Config) -> Task:
    arch = Arch.of("mlp", sizes=[784, *config.hidden, 10])
    return Task(name=config.name, arch=arch, data=Source(config.mnist, config.data_dir), recipe=Recipe(1e-3, 64, 12))
