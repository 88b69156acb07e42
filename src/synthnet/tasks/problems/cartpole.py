"""A pole balanced on a cart by an MLP; no data, rewards alone (`plants/cartpole.py`)."""

from dataclasses import dataclass

from synthnet.tasks.controllers import ControlConfig
from synthnet.tasks.plants.cartpole import PLANT
from synthnet.tasks.task import Task


@dataclass
class Config(ControlConfig):
    name: str = "cartpole"


def build(config: Config) -> Task:
    return config.of(PLANT)
