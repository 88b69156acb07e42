"""mnist-targetcnn with several numbers of channels (all but the last of a member's sizes) and of hidden units."""

from dataclasses import dataclass

from synthnet.settings import setting
from synthnet.tasks.families import FamilyConfig, family
from synthnet.tasks.problems import mnist_targetcnn as one
from synthnet.tasks.task import Task


@dataclass
class Config(FamilyConfig):
    name: str = "mnist-targetcnn-family"
    members: list[list[int]] = setting([[4, 8, 16], [6, 12, 24], [8, 16, 32]], "architectures trained on")
    heldout: list[list[int]] = setting([[32, 64, 128]], "never trained on")


def build(config: Config) -> Task:
    return family(config, one, lambda sizes: {"channels": sizes[:-1], "hidden": sizes[-1:]})
