"""MNIST images, asked whether each is one of some: 784-10-2, told which by a spec of ten bits (`relabelled.py`)."""

from dataclasses import dataclass

from synthnet.engine import Recipe
from synthnet.settings import setting
from synthnet.tasks.relabelled import yes_or_no
from synthnet.tasks.settings import DataConfig
from synthnet.tasks.source import Source
from synthnet.tasks.task import Task


@dataclass
class Config(DataConfig):
    name: str = "mnist5k-yes"
    hidden: list[int] = setting([10], "sizes of the hidden layers")


def build(config: Config) -> Task:
    return yes_or_no(config.name, Source(config.mnist, config.data_dir), [784, *config.hidden], Recipe(2e-3, 64, 20))
