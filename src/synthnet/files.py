"""Writing files so that nothing already written is ever lost: temporary name, fsync, rename."""

import contextlib
import os
import tempfile
from pathlib import Path

from synthnet.errors import InputError


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Write `content` to `path`; at every moment the path holds the whole old file or the whole new one.

    Raises: InputError when the place cannot be written to (missing folder, no permission, full disk).
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; name a file")
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
