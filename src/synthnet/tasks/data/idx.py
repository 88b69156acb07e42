"""MNIST or Fashion-MNIST from local IDX files."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synthnet.errors import InputError
from synthnet.tasks.data import required

NAMES = {
    "images": ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"),
    "labels": ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"),
}


def load(data_dir: str | Path | None) -> tuple[Tensor, Tensor]:
    files = NAMES["images"][0] + "[.gz] and its three siblings"
    return read_idx_folder(required(data_dir, "MNIST or Fashion-MNIST", files))


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
    parts = {kind: [read_idx(_idx_path(folder, name)) for name in names] for kind, names in NAMES.items()}
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
