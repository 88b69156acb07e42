"""CIFAR-10 from its local binary archive."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synthnet.errors import InputError
from synthnet.tasks.data import required

FILES = ("data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin", "test_batch.bin")
RECORD = 1 + 3 * 32 * 32


def load(data_dir: str | Path | None) -> tuple[Tensor, Tensor]:
    return read_cifar_folder(required(data_dir, "CIFAR-10", "data_batch_1.bin … data_batch_5.bin (the binary archive)"))


def read_cifar_folder(folder: Path) -> tuple[Tensor, Tensor]:
    """CIFAR-10 from the binary archive. Images [example 3 32 32] in [0, 1]. Format: cs.toronto.edu/~kriz/cifar.html."""
    records = [_cifar_records(folder / name) for name in FILES]
    raw = np.concatenate(records)
    if raw[:, 0].max() > 9:
        raise InputError(f"{folder}: a label is {raw[:, 0].max()}, expected 0..9; is this CIFAR-100?")
    images = raw[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32) / 255.0
    return torch.from_numpy(images), torch.from_numpy(raw[:, 0].astype(np.int64))


def _cifar_records(path: Path) -> np.ndarray:
    if not path.exists():
        raise InputError(f"{path} is missing; put the *.bin files of cifar-10-binary.tar.gz into {path.parent}")
    raw = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    if raw.size == 0 or raw.size % RECORD:
        raise InputError(f"{path} is truncated: {raw.size} bytes is not a multiple of {RECORD}")
    return raw.reshape(-1, RECORD)
