"""JSONL files that are only ever appended to: one record a line, a half-written last line is not a record."""

import json
import os
from pathlib import Path

from synthnet.errors import InputError
from synthnet.files import lock

LONGEST_LINE = 1 << 16  # bytes; a longer line is no record of ours


def append(path: Path, record: dict, sync: bool = False) -> int:
    """Append one record as one write, one at a time whoever else appends; with `sync`, it is on the disk before this returns,
    and the number of its line is returned, from 1 (else 0).

    A half-written line that an earlier process left behind is ended first, so that this record starts a line of its own.
    Raises: InputError when the disk is full or the place cannot be written to.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            lock(handle, wait=True)
            size = os.fstat(handle).st_size
            torn = size and os.pread(handle, 1, size - 1) != b"\n"
            _write_all(handle, (b"\n" if torn else b"") + json.dumps(record).encode() + b"\n")
            if sync:
                os.fsync(handle)
                return len(complete_lines(path))
            return 0
        finally:
            os.close(handle)
    except OSError as error:
        raise InputError(f"cannot write into {path}: {error.strerror}; what was finished is kept") from error


def _write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]


def complete_lines(path: Path) -> list[bytes]:
    """The lines that end in a newline; none where there is no regular file."""
    if not path.is_file():
        return []
    return path.read_bytes().split(b"\n")[:-1]


def parse(line: bytes) -> dict | None:
    """The record on a line, or None where it holds none."""
    if len(line) > LONGEST_LINE:
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def records(path: Path) -> list[dict]:
    """All records of a file; lines that hold none are passed over."""
    return [record for line in complete_lines(path) if (record := parse(line)) is not None]
