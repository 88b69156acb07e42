"""A pole balanced on a cart that should stand at a place, which differs from net to net; a policy is told it."""

from dataclasses import dataclass

from synthnet.settings import setting
from synthnet.tasks.problems.cartpole_plants import Config as PlantsConfig
from synthnet.tasks.problems.cartpole_plants import build as build


@dataclass
class Config(PlantsConfig):
    name: str = "cartpole-targets"
    differ: list[str] = setting(["target"], "the numbers that plants differ in")
