"""The data sets that tasks of the package are on, by name: a file of `data/` each."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch.nn.functional as F
from torch import Tensor

from synthnet.errors import InputError
from synthnet.settings import option
from synthnet.tasks import data
from synthnet.tasks.dataset import Splits


@dataclass(frozen=True)
class Source:
    """A data set by name. `side`: images are averaged down to side x side pixels; `data_dir`: where its files are."""

    source: str
    data_dir: str | None = None
    side: int | None = None

    @property
    def name(self) -> str:
        """The name of the images as the net sees them."""
        return f"{self.source} {self.side}x{self.side}" if self.side else self.source

    @property
    def key(self) -> dict:
        return {"source": self.source}

    def inputs(self, split_seed: int = 0, held_back: int = 0) -> dict:
        """What a net's inputs are, as far as is known without opening the data: what is subtracted and divided by on the first
        split."""
        file = option(data, self.source, "data source")
        told = {"data": getattr(file, "WHAT", self.source) + (f", averaged to {self.side}x{self.side}" if self.side else "")}
        if (standard := getattr(file, "STANDARDS", {}).get(self.side)) is not None:
            told |= {"subtracted": standard[0], "divided_by": standard[1]}
        return told

    @property
    def classes(self) -> None:
        """Labels are numbers already."""

    def splits(self, split_seed: int = 0, held_back: int = 0) -> Splits:
        """Inputs [example feature], standardised by the one mean and one deviation of all training pixels; labels; where each
        split lies."""
        return _splits(self, split_seed, held_back)


@lru_cache(maxsize=8)
def _splits(source: Source, split_seed: int, held_back: int) -> Splits:
    images, labels = data.load(source.source, source.data_dir)
    inputs = _resized(images, source.side).flatten(1)
    indices = data.split_indices(source.source, len(labels), split_seed, held_back)
    if min(map(len, indices.values())) < 1:
        raise InputError(f"{len(labels)} images are too few to split into train, reward, val and test")
    train = inputs[indices["train"]]
    return Splits((inputs - train.mean()) / train.std(), labels, indices)


def _resized(images: Tensor, side: int | None) -> Tensor:
    """Square one-channel images [example …] averaged down to side x side pixels."""
    if side is None:
        return images
    own = math.isqrt(images[0].numel())
    return F.adaptive_avg_pool2d(images.reshape(-1, 1, own, own), side)
