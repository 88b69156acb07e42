"""Families: tasks whose architecture is drawn from a range. Policies train on the members; what was held out judges them."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import log
from types import ModuleType

import torch

from synthnet.errors import InputError, at_least
from synthnet.nets.arch import Arch
from synthnet.seeds import generator
from synthnet.tasks.settings import DataConfig
from synthnet.tasks.task import Task

LARGEST_FAMILY = 256


@dataclass
class FamilyConfig(DataConfig):
    """members: sizes of the hidden layers of each architecture trained on; where there are none, `count` of them are drawn with
    `draw_seed`: a depth of `depths`, then each size log-uniform within `widths`, never one of `heldout`."""

    members: list[list[int]] = field(default_factory=list)
    heldout: list[list[int]] = field(default_factory=list)
    count: int = 8
    depths: list[int] = field(default_factory=lambda: [1, 2])
    widths: list[int] = field(default_factory=lambda: [8, 64])
    draw_seed: int = 0


def draw_members(config: FamilyConfig) -> list[list[int]]:
    """The sizes of each member's hidden layers. Raises: InputError for a range that holds too few architectures."""
    if config.members:
        if both := [sizes for sizes in config.members if sizes in config.heldout]:
            raise InputError(f"task.members and task.heldout both hold {both}")
        return config.members
    at_least(1, "task", config, "count")
    if config.count > LARGEST_FAMILY:
        raise InputError(f"task.count must be at most {LARGEST_FAMILY}, got {config.count}")
    if len(config.widths) != 2 or not 1 <= config.widths[0] <= config.widths[1]:
        raise InputError(f"task.widths must be the smallest and the largest size, got {config.widths}")
    if not config.depths or min(config.depths) < 1:
        raise InputError(f"task.depths must list numbers of hidden layers, got {config.depths}")
    draw, found = generator(config.draw_seed, "family"), []
    low, high = (log(width) for width in config.widths)
    for _ in range(100 * config.count):
        depth = config.depths[torch.randint(len(config.depths), (1,), generator=draw).item()]
        sizes = (low + (high - low) * torch.rand(depth, generator=draw)).exp().round().int().tolist()
        if sizes not in found and sizes not in config.heldout:
            found.append(sizes)
        if len(found) == config.count:
            return found
    raise InputError(f"the range holds fewer than task.count = {config.count} architectures outside task.heldout")


def family(config: FamilyConfig, base: Task, arch: Callable[[list[int]], Arch]) -> Task:
    """A task like `base` whose members have the architectures that `arch` makes of their sizes."""
    archs, heldout = (tuple(arch(list(sizes)) for sizes in part) for part in (draw_members(config), config.heldout))
    return replace(base, name=config.name, arch=archs[0], of=base.name, family=archs, heldout=heldout)


def family_of_settings(config: FamilyConfig, one: ModuleType, *names: str) -> Task:
    """A family of the task module `one` whose members are lists of values of these of its settings. Raises: InputError for a
    list of another length, and for a family without members."""
    if any(len(sizes) != len(names) for sizes in (*config.members, *config.heldout)) or not config.members:
        raise InputError(
            f"task {config.name}: its members are lists [{', '.join(names)}], got {config.members} and {config.heldout}"
        )
    base = one.build(one.Config(data_dir=config.data_dir))
    return family(config, base, lambda sizes: one.build(one.Config(**dict(zip(names, sizes, strict=True)))).arch)
