"""scikit-learn's 8x8 digits (1,797 images; source: UCI optical digits) and an MLP 64-hidden-10; 2,410 weights by default."""

from dataclasses import dataclass

from synthnet.engine import Recipe
from synthnet.nets import Arch
from synthnet.settings import setting
from synthnet.tasks.settings import DataConfig
from synthnet.tasks.source import Source
from synthnet.tasks.task import Task


@dataclass
class Config(DataConfig):
    name: str = "digits-mlp"
    hidden: list[int] = setting([32], "sizes of the hidden layers")


def build(config: Config) -> Task:
    arch = Arch.of("mlp", sizes=[64, *config.hidden, 10])
    return Task(name=config.name, arch=arch, data=Source("digits", config.data_dir), recipe=Recipe(3e-3, 64, 40))
