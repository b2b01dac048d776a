"""Addresses of host-local that attachments left behind. Blocking; called by `sweeps` in threads.

Source: host-local's store (plugins/ipam/host-local/backend/disk/backend.go): one file per address, with the container
id and the interface on two lines, changed under flock(2) on `lock`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ReservedAddress:
    """An address file of host-local."""

    path: Path
    container: str
    interface: str

    @property
    def address(self) -> str:
        return self.path.name


def reserved(store: Path) -> list[ReservedAddress]:
    """What host-local keeps in `store` (`<dataDir>/<network>`). No such folder: nothing. Raises `OSError`."""
    try:
        names = sorted(os.listdir(store))
    except FileNotFoundError:
        return []
    return [found for name in names if _is_address(name) and (found := _reserved(store / name))]


def release(found: ReservedAddress) -> bool:
    """Free the address unless it is another's by now; whether it was freed. Raises `OSError`, `BlockingIOError` too.

    Does not wait for the lock: a plugin that holds it is working, and the next sweep comes.
    """
    with _locked(found.path.parent / "lock"):
        if _reserved(found.path) != found:
            return False
        found.path.unlink()
        return True


def _reserved(path: Path) -> ReservedAddress | None:
    """None where the file has gone, or is empty: a plugin is writing it, or was killed then. Ends of line are CR LF."""
    try:
        lines = path.read_text("utf-8", "replace").split()
    except FileNotFoundError:
        return None
    return ReservedAddress(path, lines[0], lines[1] if len(lines) > 1 else "") if lines else None


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
