"""cartpole-plants by nets of several widths: one policy for plants and widths at once."""

from dataclasses import dataclass

from synthnet.settings import setting
from synthnet.tasks.families import FamilyConfig, family
from synthnet.tasks.problems import cartpole_plants as one
from synthnet.tasks.task import Task


@dataclass
class Config(FamilyConfig):
    name: str = "cartpole-plants-family"
    members: list[list[int]] = setting([[16], [8], [32]], "architectures trained on")
    heldout: list[list[int]] = setting([[12], [24], [64]], "never trained on")
    differ: list[str] = setting(["length", "force", "motor"], "the numbers that plants differ in")


def build(config: Config) -> Task:
    return family(config, one, lambda sizes: {"hidden": sizes, "differ": config.differ})
