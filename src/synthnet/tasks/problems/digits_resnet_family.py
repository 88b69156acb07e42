"""digits-resnet with several numbers of blocks and widths: one policy for all of them. A member is [width, blocks]."""

from dataclasses import dataclass, field

from synthnet.tasks.families import FamilyConfig, family_of_settings
from synthnet.tasks.problems import digits_resnet as one
from synthnet.tasks.task import Task


@dataclass
class Config(FamilyConfig):
    name: str = "digits-resnet-family"
    members: list[list[int]] = field(default_factory=lambda: [[16, 0], [16, 1], [16, 2]])
    heldout: list[list[int]] = field(default_factory=lambda: [[12, 1], [12, 2], [24, 2]])


def build(config: Config) -> Task:
    return family_of_settings(config, one, "width", "blocks")
