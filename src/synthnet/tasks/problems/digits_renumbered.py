"""Digits by other numbers, several of which may be one: 64-32-10, told as what each counts by a spec (`relabelled.py`)."""

from dataclasses import dataclass

from synthnet.engine import Recipe
from synthnet.settings import setting
from synthnet.tasks.relabelled import renumbered
from synthnet.tasks.settings import DataConfig
from synthnet.tasks.source import Source
from synthnet.tasks.task import Task


@dataclass
class Config(DataConfig):
    name: str = "digits-renumbered"
    hidden: list[int] = setting([32], "sizes of the hidden layers")


def build(config: Config) -> Task:
    return renumbered(config.name, Source("digits", config.data_dir), [64, *config.hidden], Recipe(3e-3, 64, 40))
