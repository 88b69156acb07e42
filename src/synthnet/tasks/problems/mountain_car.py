"""A weak car driven up a hill by an MLP; no data, rewards alone (`plants/mountain_car.py`)."""

from dataclasses import dataclass

from synthnet.settings import setting
from synthnet.tasks.controllers import controller
from synthnet.tasks.plants.mountain_car import PLANT
from synthnet.tasks.settings import DataConfig
from synthnet.tasks.task import Task


@dataclass
class Config(DataConfig):
    name: str = "mountain-car"
    hidden: list[int] = setting([16], "sizes of the hidden layers")


def build(config: Config) -> Task:
    return controller(config.name, PLANT, config.hidden)
