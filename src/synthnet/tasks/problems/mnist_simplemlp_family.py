"""mnist-simplemlp with several widths: one policy for all of them."""

from dataclasses import dataclass, field

from synthnet.tasks.families import FamilyConfig, family
from synthnet.tasks.problems import mnist_simplemlp as one
from synthnet.tasks.task import Task


@dataclass
class Config(FamilyConfig):
    name: str = "mnist-simplemlp-family"
    members: list[list[int]] = field(default_factory=lambda: [[16], [24], [32], [48]])
    heldout: list[list[int]] = field(default_factory=lambda: [[128]])
    depths: list[int] = field(default_factory=lambda: [1])


def build(config: Config) -> Task:
    base = one.build(one.Config(data_dir=config.data_dir))
    return family(config, base, lambda sizes: one.build(one.Config(hidden=sizes)).arch)
