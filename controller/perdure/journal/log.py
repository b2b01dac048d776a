"""The journal's file: append and fsync, cut what failed, rewrite as a new file. Blocking; one thread at a time uses it.

Two rules. A frame that failed is cut off again before anything else is written, so that no later frame stands behind a
damaged one. After a failed fsync nothing is appended to that file any more (the kernel drops the dirty pages of a
failed fsync and reports it once: see fsync(2) and https://wiki.postgresql.org/wiki/Fsync_Errors): it is rewritten.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import structlog

from perdure.journal.durable import create_synced, make_folder, sync_folder, write_at
from perdure.journal.errors import JournalFailed
from perdure.journal.frames import Replayed, encode_frame, encode_header, replay
from perdure.journal.reserve import Reserve

_logger = structlog.get_logger(__name__)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_ENTRIES_PER_FRAME = 256


class Log:
    """Open descriptor and end of the file. Made by `open_log`."""

    def __init__(self, path: Path, descriptor: int, replayed: Replayed, reserve: Reserve) -> None:
        self.path = path
        self.size = replayed.size
        self.entries = replayed.entries
        """Entries in the file, dead or alive."""
        self.suspect = False
        """An fsync or a cut failed: only `rewrite` helps."""
        self._descriptor = descriptor
        self._sequence = replayed.frames
        self._reserve = reserve

    def append(self, entries: Sequence[bytes]) -> None:
        """One durable frame. A full disk is met with the reserve. Raises `OSError`, and then the frame is not there."""
        frame = encode_frame(self._sequence, entries)
        try:
            self._write(frame)
        except OSError as error:
            self._cut()
            if error.errno not in _FULL or self.suspect or not self._reserve.release():
                raise
            self._write_again(frame)
        else:
            self._reserve.ensure()
        self.size += len(frame)
        self.entries += len(entries)
        self._sequence += 1

    def _write_again(self, frame: bytes) -> None:
        try:
            self._write(frame)
        except OSError:
            self._cut()
            raise

    def _write(self, frame: bytes) -> None:
        write_at(self._descriptor, frame, self.size)
        try:
            os.fdatasync(self._descriptor)
        except OSError:
            self.suspect = True
            raise

    def _cut(self) -> None:
        try:
            os.ftruncate(self._descriptor, self.size)
            os.fdatasync(self._descriptor)
        except OSError as error:
            self.suspect = True
            _logger.error("journal_cut_failed", path=str(self.path), size=self.size, error=str(error))

    def rewrite(self, entries: Iterable[bytes]) -> None:
        """Replace the file by one with just `entries`. A kill leaves either the old file or the new one.

        Raises `OSError`, and then the old file is the journal (or, with `suspect` set, it may be either).
        """
        try:
            fresh = _create(self.path, entries)
        except OSError as error:
            if error.errno not in _FULL or not self._reserve.release():
                raise
            fresh = _create(self.path, entries)
        os.close(self._descriptor)
        self._descriptor, self.size, self._sequence, self.entries = fresh
        self.suspect = True  # until the name is durable too
        sync_folder(self.path.parent)
        self.suspect = False
        self._reserve.ensure()

    def close(self) -> None:
        os.close(self._descriptor)


def _create(path: Path, entries: Iterable[bytes]) -> tuple[int, int, int, int]:
    """Write a whole journal beside `path` and rename it there: descriptor, size, frames, entries."""
    frames, count = [encode_header()], 0
    waiting: list[bytes] = []
    for entry in entries:
        waiting.append(entry)
        if len(waiting) == _ENTRIES_PER_FRAME:
            frames.append(encode_frame(len(frames), waiting))
            count, waiting = count + len(waiting), []
    if waiting:
        frames.append(encode_frame(len(frames), waiting))
        count += len(waiting)
    data = b"".join(frames)
    temporary = _temporary(path)
    descriptor = create_synced(temporary, data)
    try:
        temporary.rename(path)
    except OSError:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)
        raise
    return descriptor, len(data), len(frames), count


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def open_log(path: Path, reserve_bytes: int) -> tuple[Log, Replayed]:
    """The journal at `path`, made if there is none, replayed, its torn end cut. Raises `JournalFailed`."""
    try:
        make_folder(path.parent)
        _temporary(path).unlink(missing_ok=True)
        reserve = Reserve(path.with_name(f"{path.name}.reserve"), reserve_bytes)
        if not path.exists():
            os.close(_create(path, ())[0])
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        sync_folder(path.parent)
        log, replayed = _replay(path, descriptor, reserve)
        reserve.ensure()
    except OSError as error:
        raise JournalFailed(
            f"opening the node journal {path}: {error.strerror or error}; check that the disk has room and that this "
            "process may write the state folder"
        ) from error
    return log, replayed


def _replay(path: Path, descriptor: int, reserve: Reserve) -> tuple[Log, Replayed]:
    try:
        replayed = replay(path.read_bytes(), path)
        if replayed.torn:
            _logger.warning("journal_torn_end_cut", path=str(path), bytes=replayed.torn, at=replayed.size)
            os.ftruncate(descriptor, replayed.size)
            os.fdatasync(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return Log(path, descriptor, replayed, reserve), replayed
