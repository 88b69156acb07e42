"""The digits (8x8) and a small vision Transformer: 16 patches of 2x2 pixels, `dim` features, two blocks of two heads with
LayerNorm; 18,154 weights by default."""

from dataclasses import dataclass

from synthnet.engine import Recipe
from synthnet.nets import Arch
from synthnet.settings import setting
from synthnet.tasks.settings import DataConfig
from synthnet.tasks.source import Source
from synthnet.tasks.task import Task


@dataclass
class Config(DataConfig):
    name: str = "digits-vit"
    dim: int = setting(32, "features of a token")
    blocks: int = setting(2, "how many")


def build(config: Config) -> Task:
    arch = Arch.of("vit", side=8, patch=2, dim=config.dim, blocks=config.blocks, heads=2)
    return Task(name=config.name, arch=arch, data=Source("digits", config.data_dir), recipe=Recipe(1e-3, 64, 40))
