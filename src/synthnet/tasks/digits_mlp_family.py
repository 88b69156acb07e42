"""digits-mlp with one or two hidden layers of several widths: one policy for all of them."""

from dataclasses import dataclass, field

from synthnet.tasks import Task
from synthnet.tasks import digits_mlp as one
from synthnet.tasks._family import FamilyConfig, family


@dataclass
class Config(FamilyConfig):
    name: str = "digits-mlp-family"
    heldout: list[list[int]] = field(default_factory=lambda: [[24], [64], [96], [20, 20], [40, 40], [24, 24, 24]])


def build(config: Config) -> Task:
    base = one.build(one.Config(data_dir=config.data_dir))
    return family(config, base, lambda sizes: one.build(one.Config(hidden=sizes)).arch)
