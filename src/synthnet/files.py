"""Writing files so that nothing already written is ever lost: temporary name, fsync, rename."""

import contextlib
import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from synthnet.errors import InputError


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Write `content` to `path`; at every moment the path holds the whole old file or the whole new one.

    Raises: InputError when the place cannot be written to (missing folder, no permission, full disk).
    """
    path = Path(path).resolve()
    data = content.encode() if isinstance(content, str) else content
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; name a file")
    if path.exists() and not path.is_file():
        raise InputError(f"cannot write {path}: it is not a regular file")
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
        temporary = None
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, read in parts."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(path: str | Path) -> None:
    """Make a folder and its parents. Raises: InputError where that cannot be."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror}") from error


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """A `.safetensors` file whose bytes depend on its content alone.

    The library writes metadata keys in random order; here the header is written again with its keys sorted.
    """
    raw = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata=dict(metadata or {}))
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.dumps(json.loads(raw[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + raw[8 + size :]


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors and string metadata as `.safetensors`, whole or not at all."""
    write_atomic(path, safetensors_bytes(tensors, metadata))
