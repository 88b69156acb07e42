"""digits-vit with several widths and numbers of blocks: one policy for all of them. A member is [dim, blocks]."""

from dataclasses import dataclass

from synthnet.settings import setting
from synthnet.tasks.families import FamilyConfig, family, named
from synthnet.tasks.problems import digits_vit as one
from synthnet.tasks.task import Task


@dataclass
class Config(FamilyConfig):
    name: str = "digits-vit-family"
    members: list[list[int]] = setting([[16, 1], [32, 2]], "architectures trained on")
    heldout: list[list[int]] = setting([[16, 2], [24, 2], [32, 1]], "never trained on")


def build(config: Config) -> Task:
    return family(config, one, lambda sizes: named(("dim", "blocks"), sizes))
