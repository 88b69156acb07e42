"""Arms of two links, the outer one light or heavy, with motors weak or strong, some reversed; a net is for one of them, which
its policy is told."""

from dataclasses import dataclass

from synthnet.settings import setting
from synthnet.tasks.controllers import controller
from synthnet.tasks.plants.acrobot import PLANT
from synthnet.tasks.settings import DataConfig
from synthnet.tasks.task import Task


@dataclass
class Config(DataConfig):
    name: str = "acrobot-plants"
    hidden: list[int] = setting([16], "sizes of the hidden layers")
    differ: list[str] = setting(["mass", "torque", "motor"], "the numbers that plants differ in")


def build(config: Config) -> Task:
    return controller(config.name, PLANT.differing(config.differ), config.hidden)
