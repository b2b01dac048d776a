"""Disk space put aside, so that a full disk still leaves room to remember what is being done. Used by the log.

The space is a file without meaning. It is deleted when a write finds the disk full, and made again once there is room.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import structlog

_logger = structlog.get_logger(__name__)
_RETRY_AFTER_SECONDS = 60.0


@dataclass(slots=True)
class Reserve:
    path: Path
    size: int
    """Bytes; 0 = no reserve."""
    _next_try: float = field(default=0.0, init=False)

    def ensure(self) -> None:
        """Make the reserve if it is not there and the disk has twice its room; asked at most once a minute.

        Never raises for a lack of room: work goes on without a reserve, with a warning.
        """
        now = time.monotonic()
        if self.size == 0 or now < self._next_try:
            return
        self._next_try = now + _RETRY_AFTER_SECONDS
        try:
            if self.path.exists() and self.path.stat().st_blocks * 512 >= self.size:
                return
            disk = os.statvfs(self.path.parent)
            if disk.f_bavail * disk.f_frsize < 2 * self.size:
                _logger.warning("journal_reserve_missing", path=str(self.path), bytes=self.size, why="disk nearly full")
                return
            self._allocate()
        except OSError as error:
            _logger.warning("journal_reserve_missing", path=str(self.path), bytes=self.size, why=str(error))

    def _allocate(self) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, self.size)
        except OSError:
            self.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    def release(self) -> bool:
        """Give the space back to the disk; whether there was any. Raises `OSError`."""
        if not self.path.exists():
            return False
        self.path.unlink()
        self._next_try = time.monotonic() + _RETRY_AFTER_SECONDS
        _logger.warning("journal_reserve_released", path=str(self.path), bytes=self.size, why="disk full")
        return True
