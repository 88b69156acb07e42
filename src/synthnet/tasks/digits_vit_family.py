"""digits-vit with several widths and numbers of blocks: one policy for all of them. A member is [dim, blocks]."""

from dataclasses import dataclass, field

from synthnet.errors import InputError
from synthnet.tasks import Task
from synthnet.tasks import digits_vit as one
from synthnet.tasks._family import FamilyConfig, family


@dataclass
class Config(FamilyConfig):
    name: str = "digits-vit-family"
    members: list[list[int]] = field(default_factory=lambda: [[16, 1], [32, 2]])
    heldout: list[list[int]] = field(default_factory=lambda: [[16, 2], [24, 2], [32, 1]])


def build(config: Config) -> Task:
    if any(len(sizes) != 2 for sizes in (*config.members, *config.heldout)) or not config.members:
        raise InputError(f"task {config.name}: its members are lists [dim, blocks], got {config.members} and {config.heldout}")
    base = one.build(one.Config(data_dir=config.data_dir))
    return family(config, base, lambda sizes: one.build(one.Config(dim=sizes[0], blocks=sizes[1])).arch)
