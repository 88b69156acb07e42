"""Poles of many lengths on carts of many motors, some of them reversed; a net is for one of them, which its policy is told."""

from dataclasses import dataclass

from synthnet.settings import setting
from synthnet.tasks.controllers import controller
from synthnet.tasks.plants.cartpole import PLANT
from synthnet.tasks.settings import DataConfig
from synthnet.tasks.task import Task


@dataclass
class Config(DataConfig):
    name: str = "cartpole-plants"
    hidden: list[int] = setting([16], "sizes of the hidden layers")
    differ: list[str] = setting(["length", "force", "motor"], "the numbers that plants differ in")


def build(config: Config) -> Task:
    return controller(config.name, PLANT.differing(config.differ), config.hidden)
