"""A FIFO that somebody else writes into, of which the beginning is kept and the rest is thrown away, at a bounded pace.

Used for what commands print: one that prints for ever costs little, and is never blocked before its time is up.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import TracebackType

CHUNK_BYTES = 64 * 1024
FREE_BYTES = 256 * 1024
"""So much is read as fast as it comes."""
PAUSE_SECONDS = 0.02
"""Between two chunks after that: some 3 MB/s."""


def open_fifo(path: Path) -> int:
    """For writing, too: with a writer of our own there is no end of file while nobody else has opened it."""
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


class Fifo:
    """Made and opened on entry, inside an event loop; closed on exit. Its name stays for whoever cleans up."""

    def __init__(self, path: Path, kept_bytes: int) -> None:
        self.path = path
        self.truncated = False
        self._kept_bytes = kept_bytes
        self._kept = bytearray()
        self._read = 0
        self._descriptor = -1
        self._pause: asyncio.TimerHandle | None = None

    def __enter__(self) -> Fifo:
        """Raises `OSError`."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.mkfifo(self.path, 0o600)
        self._descriptor = open_fifo(self.path)
        self._listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pause is not None:
            self._pause.cancel()
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)

    def heard(self) -> bytes:
        """The beginning of what was written so far."""
        self._take()
        return bytes(self._kept)

    def _listen(self) -> None:
        self._pause = None
        asyncio.get_running_loop().add_reader(self._descriptor, self._on_readable)

    def _on_readable(self) -> None:
        self._take()
        if self._read > FREE_BYTES:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._descriptor)
            self._pause = loop.call_later(PAUSE_SECONDS, self._listen)

    def _take(self) -> None:
        try:
            data = os.read(self._descriptor, CHUNK_BYTES)
        except BlockingIOError:
            return
        self._read += len(data)
        room = self._kept_bytes - len(self._kept)
        self._kept += data[:room]
        self.truncated = self.truncated or len(data) > room
