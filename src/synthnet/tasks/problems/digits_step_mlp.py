"""digits-mlp with hidden units that are on or off: no gradient says how; twins train by a straight-through estimate."""

from dataclasses import dataclass

from synthnet.engine import Recipe
from synthnet.nets import Arch
from synthnet.settings import setting
from synthnet.tasks.settings import DataConfig
from synthnet.tasks.source import Source
from synthnet.tasks.task import Task


@dataclass
class Config(DataConfig):
    name: str = "digits-step-mlp"
    hidden: list[int] = setting([32], "sizes of the hidden layers")


def build(config: Config) -> Task:
    arch = Arch.of("step-mlp", sizes=[64, *config.hidden, 10])
    data = Source("digits", config.data_dir)
    return Task(name=config.name, arch=arch, data=data, recipe=Recipe(3e-3, 64, 40), named_only=True)
