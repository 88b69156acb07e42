"""Data sets and their splits. One file each: `load(data_dir) -> (images, labels)`, and SIZES where its splits have fixed ones.

Images are float32 [example feature…] in [0, 1] unless a task standardises them; labels are int64 [example].
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synthnet.errors import InputError
from synthnet.settings import option

SHARES = (0.70, 0.05, 0.05)  # of the examples in (train, reward, val); the rest is test
SPLITS = ("train", "reward", "val", "test")


def load(source: str, data_dir: str | Path | None = None) -> tuple[Tensor, Tensor]:
    """All examples of a data set, in their stored order.

    Raises: InputError when the package or the files are missing, saying which file goes where.
    """
    return option(sys.modules[__name__], source, "data source").load(data_dir)


def split_indices(source: str, n_examples: int, split_seed: int, held_back: int = 0) -> dict[str, Tensor]:
    """Disjoint index sets for train, reward, val and test: consecutive parts of one seeded permutation, with the last
    `held_back` train images counted as reward. Raises: InputError where that leaves no train images."""
    order = torch.randperm(n_examples, generator=torch.Generator().manual_seed(split_seed))
    sizes = getattr(option(sys.modules[__name__], source, "data source"), "SIZES", None)
    sizes = sizes or [int(share * n_examples) for share in SHARES]
    if not 0 <= held_back < sizes[0]:
        raise InputError(f"task.held_back must lie in 0..{sizes[0] - 1}: there are {sizes[0]} train images; got {held_back}")
    sizes = (sizes[0] - held_back, sizes[1] + held_back, sizes[2])
    bounds = [0, *np.cumsum(sizes).tolist(), n_examples]
    return {name: order[bounds[i] : bounds[i + 1]] for i, name in enumerate(SPLITS)}


def required(data_dir: str | Path | None, what: str, files: str) -> Path:
    if data_dir is None:
        raise InputError(f"{what} is read from local files: put {files} into a folder and pass data_dir=FOLDER")
    folder = Path(data_dir)
    if not folder.is_dir():
        raise InputError(f"data_dir {folder} is not a folder; it should hold {files}")
    return folder
