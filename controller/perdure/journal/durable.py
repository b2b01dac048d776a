"""The few file operations whose durability the journal, the identity and the lock rest on. Blocking: run in a thread.

A rename is durable only after the folder itself was fsynced: fsync(2), "Calling fsync() does not necessarily ensure
that the entry in the directory containing the file has also reached disk".
"""

from __future__ import annotations

import os
from pathlib import Path

_PRIVATE_FOLDER = 0o700
_PRIVATE_FILE = 0o600


def make_folder(path: Path) -> None:
    """The folder and what leads to it, readable by nobody else. Raises `OSError`."""
    path.mkdir(parents=True, exist_ok=True, mode=_PRIVATE_FOLDER)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """All of `data` at `offset`: a short write is carried on. Raises `OSError`."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def create_synced(path: Path, data: bytes) -> int:
    """A new file (an old one of the name is emptied) with `data`, on disk; returns its open descriptor.

    The name itself is durable only after `sync_folder`. Raises `OSError`, and then leaves no file.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _PRIVATE_FILE)
    try:
        write_at(descriptor, data, 0)
        os.fsync(descriptor)
    except BaseException:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return descriptor
