"""Families: tasks whose architecture is drawn from a range. Policies train on the members; what was held out judges them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType

from synthnet.errors import InputError
from synthnet.settings import setting
from synthnet.tasks.settings import DataConfig
from synthnet.tasks.task import Task


@dataclass
class FamilyConfig(DataConfig):
    members: list[list[int]] = setting([], "sizes of the hidden layers of each architecture trained on")
    heldout: list[list[int]] = setting([], "of those that are never trained on")


def members_of(config: FamilyConfig) -> list[list[int]]:
    """The sizes of each member's hidden layers. Raises: InputError where there are none, or one is held out too."""
    if not config.members:
        raise InputError("task.members must list the sizes of each architecture, as in [[16],[24,24]]")
    if both := [sizes for sizes in config.members if sizes in config.heldout]:
        raise InputError(f"task.members and task.heldout both hold {both}")
    return config.members


def named(names: tuple[str, ...], sizes: list[int]) -> dict[str, int]:
    """Settings from a member's sizes. Raises: ValueError where there are more or fewer."""
    if len(sizes) != len(names):
        raise ValueError(f"a member is [{', '.join(names)}]")
    return dict(zip(names, sizes, strict=True))


def family(config: FamilyConfig, one: ModuleType, settings_of: Callable[[list[int]], dict]) -> Task:
    """The family of a problem file `one`: a member's sizes become its settings. Raises: InputError for sizes that do not."""

    def member(sizes: list[int]) -> Task:
        try:
            return one.build(one.Config(data_dir=config.data_dir, **settings_of(list(sizes))))
        except ValueError as error:
            raise InputError(f"task {config.name}: {sizes} are no sizes of a member ({error})") from error

    members, heldout = (tuple(map(member, part)) for part in (members_of(config), config.heldout))
    archs, unseen = (tuple(each.arch for each in part) for part in (members, heldout))
    return replace(members[0], name=config.name, of=members[0].name, family=archs, heldout=unseen)
