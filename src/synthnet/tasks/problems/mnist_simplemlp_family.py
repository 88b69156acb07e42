"""mnist-simplemlp with several widths: one policy for all of them."""

from dataclasses import dataclass

from synthnet.settings import setting
from synthnet.tasks.families import FamilyConfig, family
from synthnet.tasks.problems import mnist_simplemlp as one
from synthnet.tasks.task import Task


@dataclass
class Config(FamilyConfig):
    name: str = "mnist-simplemlp-family"
    members: list[list[int]] = setting([[16], [24], [32], [48]], "architectures trained on")
    heldout: list[list[int]] = setting([[128]], "never trained on")


def build(config: Config) -> Task:
    return family(config, one, lambda sizes: {"hidden": sizes})
