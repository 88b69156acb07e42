"""mnist-targetcnn with several numbers of channels (all but the last of a member's sizes) and of hidden units."""

from dataclasses import dataclass, field

from synthnet.tasks.families import FamilyConfig, family
from synthnet.tasks.problems import mnist_targetcnn as one
from synthnet.tasks.task import Task


@dataclass
class Config(FamilyConfig):
    name: str = "mnist-targetcnn-family"
    members: list[list[int]] = field(default_factory=lambda: [[4, 8, 16], [6, 12, 24], [8, 16, 32]])
    heldout: list[list[int]] = field(default_factory=lambda: [[32, 64, 128]])
    depths: list[int] = field(default_factory=lambda: [3])


def build(config: Config) -> Task:
    base = one.build(one.Config(data_dir=config.data_dir))
    return family(config, base, lambda sizes: one.build(one.Config(channels=sizes[:-1], hidden=sizes[-1:])).arch)
