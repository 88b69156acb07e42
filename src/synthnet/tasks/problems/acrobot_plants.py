"""Arms of two links, the outer one light or heavy, with motors weak or strong, some reversed; a net is for one of them, which
its policy is told."""

from dataclasses import dataclass

from synthnet.settings import setting
from synthnet.tasks.controllers import ControlConfig
from synthnet.tasks.plants.acrobot import PLANT
from synthnet.tasks.task import Task


@dataclass
class Config(ControlConfig):
    name: str = "acrobot-plants"
    differ: list[str] = setting(["mass", "torque", "motor"], "the numbers that plants differ in")


def build(config: Config) -> Task:
    return config.of(PLANT.differing(config.differ))
