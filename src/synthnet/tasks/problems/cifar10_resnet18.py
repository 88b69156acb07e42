"""CIFAR-10 (the binary archive in `data_dir`) and ResNet-18 in its form for small images, with BatchNorm; 11,173,962 weights
and 9,600 running statistics by default."""

from dataclasses import dataclass

from synthnet.engine import Recipe
from synthnet.nets import Arch
from synthnet.settings import setting
from synthnet.tasks.settings import DataConfig
from synthnet.tasks.source import Source
from synthnet.tasks.task import Task


@dataclass
class Config(DataConfig):
    name: str = "cifar10-resnet18"
    width: int = setting(64, "channels of the stem and of every block")


def build(config: Config) -> Task:
    return Task(
        name=config.name,
        arch=Arch.of("resnet18", width=config.width),
        data=Source("cifar10", config.data_dir),
        recipe=Recipe(1e-3, 128, 10),
    )
