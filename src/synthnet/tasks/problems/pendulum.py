"""A pendulum swung up and held by an MLP; no data, rewards alone (`plants/pendulum.py`)."""

from dataclasses import dataclass

from synthnet.settings import setting
from synthnet.tasks.controllers import ControlConfig
from synthnet.tasks.plants.pendulum import PLANT
from synthnet.tasks.task import Task


@dataclass
class Config(ControlConfig):
    name: str = "pendulum"
    hidden: list[int] = setting([32], "sizes of the hidden layers")


def build(config: Config) -> Task:
    return config.of(PLANT)
