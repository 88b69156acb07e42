"""digits-mlp with one or two hidden layers of several widths: one policy for all of them."""

from dataclasses import dataclass, field

from synthnet.tasks.families import FamilyConfig, family
from synthnet.tasks.problems import digits_mlp as one
from synthnet.tasks.task import Task


@dataclass
class Config(FamilyConfig):
    name: str = "digits-mlp-family"
    heldout: list[list[int]] = field(default_factory=lambda: [[24], [64], [96], [20, 20], [40, 40], [24, 24, 24]])


def build(config: Config) -> Task:
    base = one.build(one.Config(data_dir=config.data_dir))
    return family(config, base, lambda sizes: one.build(one.Config(hidden=sizes)).arch)
