"""mnist5k-cnn with several numbers of channels, and of convolutions: one policy for all of them."""

from dataclasses import dataclass, field

from synthnet.tasks.families import FamilyConfig, family
from synthnet.tasks.problems import mnist5k_cnn as one
from synthnet.tasks.task import Task


@dataclass
class Config(FamilyConfig):
    name: str = "mnist5k-cnn-family"
    members: list[list[int]] = field(default_factory=lambda: [[8, 16], [5, 10], [10, 20], [20, 40]])
    heldout: list[list[int]] = field(default_factory=lambda: [[4, 8], [6, 12], [12, 24], [16, 32], [32, 64]])
    depths: list[int] = field(default_factory=lambda: [2])
    pools: int | None = None


def build(config: Config) -> Task:
    base = one.build(one.Config(data_dir=config.data_dir))
    return family(config, base, lambda sizes: one.build(one.Config(channels=sizes, pools=config.pools)).arch)
