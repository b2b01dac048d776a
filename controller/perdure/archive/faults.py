"""How a job of the archive worker fails; `local` turns these into the errors of the port.

The worker does not import the port's module: it starts for each job, and starts faster without.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum


class FaultKind(StrEnum):
    """Whose fault it is, and so who can do something."""

    STORE_FULL = "store-full"
    STORE_UNAVAILABLE = "store-unavailable"
    ARCHIVE_MISSING = "archive-missing"
    ARCHIVE_FAILED = "archive-failed"
    """The layer could not be archived; it is untouched."""
    ARCHIVE_CORRUPT = "archive-corrupt"
    """What is in the store is not what the catalogue or the manifest says."""
    ARCHIVE_OUTDATED = "archive-outdated"
    """The archive is good, and the layer was written since it was made."""
    RESTORE_FAILED = "restore-failed"
    """The archive is good, and could not be brought into the layer."""


class Fault(Exception):
    """A job failed. The message says what was being done, to what, and what the reader can do."""

    def __init__(self, kind: FaultKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


def is_out_of_space(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def store_errors(doing: str) -> Iterator[None]:
    """Say of an `OSError` that the store could not be used while `doing` something."""
    try:
        yield
    except OSError as error:
        if is_out_of_space(error):
            raise Fault(FaultKind.STORE_FULL, f"{doing}: {error}; free space in the store or enlarge it") from error
        raise Fault(
            FaultKind.STORE_UNAVAILABLE, f"{doing}: {error}; check that the store is mounted and writable"
        ) from error


@contextmanager
def layer_errors(kind: FaultKind, doing: str) -> Iterator[None]:
    """Say of an `OSError` that the layer (not the store) could not be used while `doing` something."""
    try:
        yield
    except OSError as error:
        raise Fault(kind, f"{doing}: {error}; check the file system of the engine's root folder") from error
