"""digits-vit with several widths and numbers of blocks: one policy for all of them. A member is [dim, blocks]."""

from dataclasses import dataclass, field

from synthnet.tasks.families import FamilyConfig, family_of_settings
from synthnet.tasks.problems import digits_vit as one
from synthnet.tasks.task import Task


@dataclass
class Config(FamilyConfig):
    name: str = "digits-vit-family"
    members: list[list[int]] = field(default_factory=lambda: [[16, 1], [32, 2]])
    heldout: list[list[int]] = field(default_factory=lambda: [[16, 2], [24, 2], [32, 1]])


def build(config: Config) -> Task:
    return family_of_settings(config, one, "dim", "blocks")
