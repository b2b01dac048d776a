"""RuntimeArchive: the record, in the cluster, of one archive of a runtime's data. The bytes are in a store."""

from __future__ import annotations

from perdure.api.names import Kind
from perdure.api.struct import Struct


class ArchiveSource(Struct, frozen=True, kw_only=True):
    """Whose data it is."""

    kind: str
    name: str
    uid: str


class ArchiveSpec(Struct, frozen=True, kw_only=True):
    source: ArchiveSource
    retain: bool = False
    """True: a Purge of the identity leaves this archive alone."""


class ArchiveStatus(Struct, frozen=True, kw_only=True):
    phase: str = "Verified"
    sequence: int = 0
    store: str = ""
    node_name: str = ""
    sha256: str = ""
    bytes: int = 0
    entries: int = 0
    uncompressed_bytes: int = 0
    image: str = ""


def object_name(kind: Kind, name: str, sequence: int) -> str:
    """The name of the RuntimeArchive object of an archive: deterministic, so that publishing it twice is one object."""
    return f"{kind.short}-{name}-{sequence}"
