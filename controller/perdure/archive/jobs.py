"""What the worker is asked, and what it answers: JSON over its standard input and output, one line per message.

What a line of the worker may hold does not grow with the layer: manifests stay in the worker.
"""

from __future__ import annotations

from typing import Final

import msgspec

from perdure.archive.faults import FaultKind
from perdure.archive.manifest import Source


class Export(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Archive the layer at `upper` under `folder` (components below `store`)."""

    store: str
    folder: tuple[str, ...]
    sequence: int
    source: Source
    upper: str


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """An archive as the catalogue knows it."""

    store: str
    folder: tuple[str, ...]
    sequence: int
    uid: str
    snapshot_key: str
    chain_id: str
    sha256: str
    bytes: int
    entries: int
    uncompressed_bytes: int


class Verify(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    archive: Known


class Compare(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Is the layer at `upper` what `archive` was made of, to the last change?"""

    archive: Known
    upper: str


class Restore(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Make the layer at `upper` what `archive` holds. `staging`: a folder of ours on the same mount; `key`: whose."""

    archive: Known
    key: str
    upper: str
    staging: str


Job = Export | Verify | Compare | Restore


LONGEST_ANSWER: Final = 64 << 10
"""Bytes of one line of the worker."""
LONGEST_MESSAGE: Final = 8 << 10
"""Characters of a failure's message: in JSON, with every one escaped, they fit into a line."""


class Progress(msgspec.Struct, frozen=True, tag=True):
    """The job moves. Said at most once a second, and not at all when it hangs."""


class Done(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The archive that was written, verified or restored, as its manifest says."""

    sha256: str
    bytes: int
    uncompressed_bytes: int
    entries: int
    empty: bool


class Failed(msgspec.Struct, frozen=True, tag=True):
    kind: FaultKind
    message: str


Answer = Progress | Done | Failed
