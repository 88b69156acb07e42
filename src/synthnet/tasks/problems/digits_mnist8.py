"""digits-mlp and mnist8-mlp together: one policy for the same net on two data sets."""

from dataclasses import dataclass, replace

from synthnet.settings import setting
from synthnet.tasks.problems import digits_mlp, mnist8_mlp
from synthnet.tasks.settings import DataConfig
from synthnet.tasks.task import Task


@dataclass
class Config(DataConfig):
    name: str = "digits-mnist8"
    hidden: list[int] = setting([32], "sizes of the hidden layers")


def build(config: Config) -> Task:
    digits = digits_mlp.build(digits_mlp.Config(hidden=config.hidden))
    mnist = mnist8_mlp.build(mnist8_mlp.Config(hidden=config.hidden, data_dir=config.data_dir))
    joint = tuple(replace(part, split_seed=config.split_seed, held_back=config.held_back) for part in (digits, mnist))
    return replace(joint[0], name=config.name, joint=joint)
