"""mnist-simplecnn with several numbers of channels: one policy for all of them."""

from dataclasses import dataclass

from synthnet.settings import setting
from synthnet.tasks.families import FamilyConfig, family
from synthnet.tasks.problems import mnist_simplecnn as one
from synthnet.tasks.task import Task


@dataclass
class Config(FamilyConfig):
    name: str = "mnist-simplecnn-family"
    members: list[list[int]] = setting([[4, 8], [6, 12], [8, 16]], "architectures trained on")
    heldout: list[list[int]] = setting([[16, 32]], "never trained on")


def build(config: Config) -> Task:
    return family(config, one, lambda sizes: {"channels": sizes})
