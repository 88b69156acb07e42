"""A weak car driven up a hill by an MLP; no data, rewards alone (`plants/mountain_car.py`)."""

from dataclasses import dataclass

from synthnet.tasks.controllers import ControlConfig
from synthnet.tasks.plants.mountain_car import PLANT
from synthnet.tasks.task import Task


@dataclass
class Config(ControlConfig):
    name: str = "mountain-car"


def build(config: Config) -> Task:
    return config.of(PLANT)
