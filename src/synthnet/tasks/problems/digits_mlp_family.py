"""digits-mlp with one to four hidden layers of several widths: one policy for all of them."""

from dataclasses import dataclass

from synthnet.settings import setting
from synthnet.tasks.families import FamilyConfig, family
from synthnet.tasks.problems import digits_mlp as one
from synthnet.tasks.task import Task


@dataclass
class Config(FamilyConfig):
    name: str = "digits-mlp-family"
    members: list[list[int]] = setting(
        [[32], [16], [48], [24, 24], [32, 16], [48, 48], [32] * 4, [24] * 4, [48, 32, 24, 16], [16] * 4],
        "architectures trained on",
    )
    heldout: list[list[int]] = setting(
        [[24], [64], [96], [20, 20], [40, 40], [24] * 3, [32] * 3, [48, 32, 16]], "never trained on"
    )


def build(config: Config) -> Task:
    return family(config, one, lambda sizes: {"hidden": sizes})
