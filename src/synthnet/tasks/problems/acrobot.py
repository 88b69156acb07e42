"""Two links swung up by an MLP; no data, rewards alone (`plants/acrobot.py`)."""

from dataclasses import dataclass

from synthnet.tasks.controllers import ControlConfig
from synthnet.tasks.plants.acrobot import PLANT
from synthnet.tasks.task import Task


@dataclass
class Config(ControlConfig):
    name: str = "acrobot"


def build(config: Config) -> Task:
    return config.of(PLANT)
