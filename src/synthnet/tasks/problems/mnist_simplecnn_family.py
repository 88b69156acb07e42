"""mnist-simplecnn with several numbers of channels: one policy for all of them."""

from dataclasses import dataclass, field

from synthnet.tasks.families import FamilyConfig, family
from synthnet.tasks.problems import mnist_simplecnn as one
from synthnet.tasks.task import Task


@dataclass
class Config(FamilyConfig):
    name: str = "mnist-simplecnn-family"
    members: list[list[int]] = field(default_factory=lambda: [[4, 8], [6, 12], [8, 16]])
    heldout: list[list[int]] = field(default_factory=lambda: [[16, 32]])
    depths: list[int] = field(default_factory=lambda: [2])


def build(config: Config) -> Task:
    base = one.build(one.Config(data_dir=config.data_dir))
    return family(config, base, lambda sizes: one.build(one.Config(channels=sizes)).arch)
