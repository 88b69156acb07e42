"""A pendulum swung up and held by an MLP; no data, rewards alone (`plants/pendulum.py`)."""

from dataclasses import dataclass

from synthnet.settings import setting
from synthnet.tasks.controllers import controller
from synthnet.tasks.plants.pendulum import PLANT
from synthnet.tasks.settings import DataConfig
from synthnet.tasks.task import Task


@dataclass
class Config(DataConfig):
    name: str = "pendulum"
    hidden: list[int] = setting([32], "sizes of the hidden layers")


def build(config: Config) -> Task:
    return controller(config.name, PLANT, config.hidden)
