"""digits-resnet with several numbers of blocks and widths: one policy for all of them. A member is [width, blocks]."""

from dataclasses import dataclass, field

from synthnet.errors import InputError
from synthnet.tasks import Task
from synthnet.tasks import digits_resnet as one
from synthnet.tasks._family import FamilyConfig, family


@dataclass
class Config(FamilyConfig):
    name: str = "digits-resnet-family"
    members: list[list[int]] = field(default_factory=lambda: [[16, 0], [16, 1], [16, 2]])
    heldout: list[list[int]] = field(default_factory=lambda: [[12, 1], [12, 2], [24, 2]])


def build(config: Config) -> Task:
    if any(len(sizes) != 2 for sizes in (*config.members, *config.heldout)) or not config.members:
        raise InputError(
            f"task {config.name}: its members are lists [width, blocks], got {config.members} and {config.heldout}"
        )
    base = one.build(one.Config(data_dir=config.data_dir))
    return family(config, base, lambda sizes: one.build(one.Config(width=sizes[0], blocks=sizes[1])).arch)
