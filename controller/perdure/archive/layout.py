"""Where things are in a store: `<installation>/<namespace>/<kind>/<name>/<uid>/<sequence>.tar.zst`, and `.json` beside it.

Everything goes through folder descriptors, opened component by component without following links: a store may be a
shared folder. Called by the worker's jobs and by `local`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from perdure.archive.faults import Fault, FaultKind, store_errors
from perdure.archive.manifest import Manifest, ManifestError, decode_manifest, encode_manifest

_COMPONENT = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_ARCHIVE_SUFFIX: Final = ".tar.zst"
_MANIFEST_SUFFIX: Final = ".json"
_PARTIAL_SUFFIX: Final = ".partial"
_SEQUENCE_FILE = re.compile(r"(\d+)(?:\.tar\.zst|\.json)")
_FOLDER_MODE, _FILE_MODE = 0o700, 0o600
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_MAX_MANIFEST: Final = 512 << 20
"""Bytes of the largest manifest that a worker reads: earlier versions wrote larger ones than this one does."""


class Busy(Fault):
    """Another process writes or deletes archives of the same runtime."""

    def __init__(self) -> None:
        super().__init__(
            FaultKind.STORE_UNAVAILABLE, "another process writes or deletes archives of this runtime; wait for its end"
        )


def component(name: str) -> str:
    """A name that is one component of a path. Raises `ValueError`."""
    if not _is_component(name):
        raise ValueError(f"{name!r} cannot be the name of a folder in a store")
    return name


def _is_component(name: str) -> bool:
    """What file systems keep in any folder (`lost+found`, `.snapshot`, `.Trash-0`) is none."""
    return _COMPONENT.fullmatch(name) is not None


def archive_name(sequence: int) -> str:
    return f"{sequence}{_ARCHIVE_SUFFIX}"


def manifest_name(sequence: int) -> str:
    return f"{sequence}{_MANIFEST_SUFFIX}"


def sequences_in(folder: int) -> set[int]:
    """Sequences of which the folder holds anything that has its final name, be it only half of it."""
    matches = (_SEQUENCE_FILE.fullmatch(name) for name in os.listdir(folder))
    return {int(match[1]) for match in matches if match}


@contextmanager
def open_folder(root: Path, parts: tuple[str, ...], *, make: bool = False) -> Iterator[int]:
    """A descriptor of a folder in the store; with `make`, folders that are missing are made, durably.

    Raises `FileNotFoundError`, or another `OSError`.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in map(component, parts):
            if make:
                _make_folder(fd, part)
            deeper = os.open(part, _FOLDER_FLAGS, dir_fd=fd)
            os.close(fd)
            fd = deeper
        yield fd
    finally:
        os.close(fd)


def _make_folder(parent: int, name: str) -> None:
    try:
        os.mkdir(name, _FOLDER_MODE, dir_fd=parent)
    except FileExistsError:
        return
    os.fsync(parent)


def folders(root: Path, parts: tuple[str, ...]) -> list[str]:
    """Names of the folders in a folder of the store that an archive may be in; none if it is not there. A missing root is
    an `OSError`."""
    with open_folder(root, ()):
        pass  # a store that is away must not look like one that is empty
    try:
        with open_folder(root, parts) as folder, os.scandir(folder) as listing:
            found = (entry.name for entry in listing if entry.is_dir(follow_symlinks=False))
            return sorted(filter(_is_component, found))
    except FileNotFoundError:
        return []


def prune(root: Path, parts: tuple[str, ...]) -> None:
    """Remove the folder and those above it, as far as they are empty. The root stays."""
    for depth in range(len(parts), 0, -1):
        try:
            with open_folder(root, parts[: depth - 1]) as parent:
                os.rmdir(component(parts[depth - 1]), dir_fd=parent)
                os.fsync(parent)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                return
            raise


def sweep_store(root: Path) -> int:
    """Remove what killed jobs left anywhere in the store, but where a job is at work; how many files."""
    swept = 0
    for folder, inner, names in os.walk(root, onerror=_raise):
        inner[:] = filter(_is_component, inner)
        if any(name.endswith(_PARTIAL_SUFFIX) for name in names):
            parts = Path(folder).relative_to(root).parts
            with open_folder(root, parts) as opened, suppress(Busy), locked(opened):
                swept += sweep_partial(opened)
    return swept


@contextmanager
def locked(folder: int) -> Iterator[None]:
    """Nobody else writes or deletes in this folder meanwhile. The kernel lets go when this process ends."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Busy() from error
    try:
        yield
    finally:
        fcntl.flock(folder, fcntl.LOCK_UN)


def _raise(error: OSError) -> None:
    raise error


def sweep_partial(folder: int) -> int:
    """Remove what a killed job left; how many files. Under `locked` only: then nobody is at it."""
    leftovers = [name for name in os.listdir(folder) if name.endswith(_PARTIAL_SUFFIX)]
    for name in leftovers:
        os.unlink(name, dir_fd=folder)
    return len(leftovers)


def new_partial(folder: int, name: str) -> int:
    """A new temporary file that will become `name`; open for reading and writing."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    return os.open(name + _PARTIAL_SUFFIX, flags, _FILE_MODE, dir_fd=folder)


def publish(folder: int, name: str) -> None:
    """Give the (synced) temporary file its name, durably."""
    os.rename(name + _PARTIAL_SUFFIX, name, src_dir_fd=folder, dst_dir_fd=folder)
    os.fsync(folder)


def open_archive(folder: int, sequence: int) -> int:
    """A descriptor for reading. Raises `FileNotFoundError`, or another `OSError`."""
    return os.open(archive_name(sequence), os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)


def read_manifest(folder: int, sequence: int) -> Manifest | None:
    """None: there is none. Raises `ManifestError`, `OSError`."""
    try:
        fd = os.open(manifest_name(sequence), os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        data = file.read(_MAX_MANIFEST + 1)
    if len(data) > _MAX_MANIFEST:
        raise ManifestError(f"{manifest_name(sequence)} is larger than {_MAX_MANIFEST} bytes")
    return decode_manifest(data)


def write_manifest(folder: int, sequence: int, manifest: Manifest) -> None:
    """Durably, and in one step: from now on the archive counts."""
    name = manifest_name(sequence)
    with open(new_partial(folder, name), "wb") as file:
        file.write(encode_manifest(manifest))
        file.flush()
        os.fsync(file.fileno())
    publish(folder, name)


def remove(folder: int, sequence: int) -> None:
    """Remove an archive: the manifest first, so that at no instant one vouches for bytes that are gone."""
    for name in (manifest_name(sequence), archive_name(sequence)):
        try:
            os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            continue
        os.fsync(folder)


def probe(root: Path) -> int:
    """Write, sync and remove a small file in the store's root; the bytes that are free. Raises `Fault`."""
    with store_errors(f"writing to the store {root}"), open_folder(root, ()) as folder:
        name = f"probe-{os.getpid()}"
        fd = os.open(
            name + _PARTIAL_SUFFIX, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, _FILE_MODE, dir_fd=folder
        )
        try:
            os.write(fd, bytes(4096))
            os.fsync(fd)
        finally:
            os.close(fd)
            os.unlink(name + _PARTIAL_SUFFIX, dir_fd=folder)
        space = os.fstatvfs(folder)
        return space.f_bavail * space.f_frsize
