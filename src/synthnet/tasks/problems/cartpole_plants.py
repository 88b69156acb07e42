"""Poles of many lengths on carts of many motors, some of them reversed; a net is for one of them, which its policy is told."""

from dataclasses import dataclass

from synthnet.settings import setting
from synthnet.tasks.controllers import ControlConfig
from synthnet.tasks.plants.cartpole import PLANT
from synthnet.tasks.task import Task


@dataclass
class Config(ControlConfig):
    name: str = "cartpole-plants"
    differ: list[str] = setting(["length", "force", "motor"], "the numbers that plants differ in")


def build(config: Config) -> Task:
    return config.of(PLANT.differing(config.differ))
