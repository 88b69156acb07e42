"""digits-resnet with several numbers of blocks and widths: one policy for all of them. A member is [width, blocks]."""

from dataclasses import dataclass

from synthnet.settings import setting
from synthnet.tasks.families import FamilyConfig, family, named
from synthnet.tasks.problems import digits_resnet as one
from synthnet.tasks.task import Task


@dataclass
class Config(FamilyConfig):
    name: str = "digits-resnet-family"
    members: list[list[int]] = setting([[16, 0], [16, 1], [16, 2]], "architectures trained on")
    heldout: list[list[int]] = setting([[12, 1], [12, 2], [24, 2]], "never trained on")


def build(config: Config) -> Task:
    return family(config, one, lambda sizes: named(("width", "blocks"), sizes))
