"""digits-resnet with several numbers of blocks and widths: one policy for all of them. A member is [width, blocks]."""

from dataclasses import dataclass, field

from synthnet.tasks import Task
from synthnet.tasks import digits_resnet as one
from synthnet.tasks._family import FamilyConfig, family_of_settings


@dataclass
class Config(FamilyConfig):
    name: str = "digits-resnet-family"
    members: list[list[int]] = field(default_factory=lambda: [[16, 0], [16, 1], [16, 2]])
    heldout: list[list[int]] = field(default_factory=lambda: [[12, 1], [12, 2], [24, 2]])


def build(config: Config) -> Task:
    return family_of_settings(config, one, "width", "blocks")
