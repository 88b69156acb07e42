"""mnist5k-cnn with several numbers of channels, and of convolutions: one policy for all of them."""

from dataclasses import dataclass

from synthnet.settings import setting
from synthnet.tasks.families import FamilyConfig, family
from synthnet.tasks.problems import mnist5k_cnn as one
from synthnet.tasks.task import Task


@dataclass
class Config(FamilyConfig):
    name: str = "mnist5k-cnn-family"
    members: list[list[int]] = setting([[8, 16], [5, 10], [10, 20], [20, 40]], "architectures trained on")
    heldout: list[list[int]] = setting([[4, 8], [6, 12], [12, 24], [16, 32], [32, 64]], "never trained on")
    pools: int | None = setting(None, "max-poolings, whatever the number of convolutions (null: one after each)")


def build(config: Config) -> Task:
    return family(config, one, lambda sizes: {"channels": sizes, "pools": config.pools})
