"""scikit-learn's 8x8 digits: 1,797 images (source: UCI optical digits)."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synthnet.errors import missing_extra

SIZES = (1100, 100, 100)
WHAT = "8x8 digits of scikit-learn, pixels / 16"
STANDARDS = {None: (0.3048, 0.3757)}  # side of the images: mean and deviation of train, split seed 0


@lru_cache(maxsize=1)
def load(data_dir: str | Path | None = None) -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing_extra("scikit-learn", "data") from error
    raw = load_digits()
    return torch.from_numpy(raw.data.astype(np.float32) / 16.0), torch.from_numpy(raw.target.astype(np.int64))
