"""Writing files so that nothing already written is ever lost: temporary name, fsync, rename."""

import contextlib
import hashlib
import json
import os
import secrets
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from synthnet.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

DTYPES = {  # the names of the format, https://huggingface.co/docs/safetensors
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_atomic(path: str | Path, content: bytes | str | Iterable[bytes | memoryview]) -> None:
    """Write `content`, or its parts one after the other, to `path`; at every moment the path holds the whole old file or the
    whole new one.

    Raises: InputError when the place cannot be written to (missing folder, no permission, full disk).
    """
    whole = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path = Path(path).resolve()  # through links, to what they stand for
        if path.is_symlink():  # still one: it leads to itself
            raise InputError(f"cannot write {path}: a link that leads to itself")
        if path.exists() and not path.is_file():
            raise InputError(f"cannot write {path}: it is {'a folder; name a file' if path.is_dir() else 'not a regular file'}")
        mode = path.stat().st_mode & 0o777 if path.exists() else None  # kept; of a new file, what the umask leaves
        unfinished = unfinished_beside(path)
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            temporary = unfinished
            if mode is not None:
                temporary.chmod(mode)
            for part in [whole] if isinstance(whole, bytes) else whole:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    except RuntimeError as error:  # before Python 3.13, of a link that leads to itself
        raise InputError(f"cannot write {path}: {error}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def unfinished_beside(path: Path) -> Path:
    """A name of its own for what is being written, in the folder where it will stand; short, however long the other is."""
    return path.with_name(f".{path.name[:32]}.{secrets.token_hex(8)}.tmp")


def lock(handle: int | IO, wait: bool = False, shared: bool = False) -> bool:
    """Take the lock of an open file, which dies with its process; whether that was possible. Raises: InputError where the
    system has no such locks."""
    if fcntl is None:
        raise InputError("runs need the file locks of Linux or macOS (fcntl), which this system lacks: use WSL or a container")
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, read in parts."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where what is measured or searched for on this machine is kept: ~/.cache/synthnet, or below $XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "synthnet"


def make_folder(path: str | Path) -> None:
    """Make a folder and its parents. Raises: InputError where that cannot be."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror}") from error


def refuse_collisions(names: Sequence[str], out: Path) -> None:
    """Raises: InputError where two results would be one file of the folder `out`."""
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise InputError(f"two inputs have the same name ({', '.join(twice)}), so their outputs would collide in {out}")


def raw_bytes(tensor: Tensor) -> memoryview:
    """The numbers of a tensor in row-major order, as bytes. An axis of length one may have any stride and still counts as
    contiguous, so strides are made plain here rather than asked for."""
    whole = tensor.detach().cpu().contiguous()
    return whole.as_strided((whole.numel(),), (1,)).view(torch.uint8).numpy().data


def safetensors_parts(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """A `.safetensors` file in parts, the header and then each tensor as it lies in memory: no copy of the whole is made. Its
    bytes depend on its content alone (the library writes metadata in random order, from a copy): largest data types first, as
    alignment asks, then by name.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        value = tensors[name]
        start, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in order:
        yield raw_bytes(tensors[name])


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors and string metadata as `.safetensors`, whole or not at all. Raises: InputError for what the format has no
    word for, or a place that cannot be written to."""
    if "__metadata__" in tensors:
        raise InputError(f"cannot write {path}: the format keeps the name __metadata__ for itself; rename that tensor")
    if strange := [name for name, value in tensors.items() if value.dtype not in DTYPES]:
        kind = str(tensors[strange[0]].dtype).removeprefix("torch.")
        raise InputError(f"cannot write {path}: {strange[0]} holds {kind} numbers; expected {', '.join(DTYPES.values())}")
    write_atomic(path, safetensors_parts(tensors, metadata or {}))
