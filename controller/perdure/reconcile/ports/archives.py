"""Stores of archives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from perdure.api.names import (
    InstallationId,
    NodeId,
    RuntimeRef,
)
from perdure.plan.world import (
    ArchiveFacts,
    Workspace,
)
from perdure.reconcile.ports.engine import Layer


@dataclass(frozen=True, slots=True)
class ArchiveRequest:
    """What an archive is to be called and what its manifest says of where it came from."""

    installation: InstallationId
    ref: RuntimeRef
    sequence: int
    node_id: NodeId
    workspace: Workspace


@dataclass(frozen=True, slots=True)
class StoredArchive:
    """What lies in a store, by its own word: nothing of it is proven. `problem`: why it is not even to be asked."""

    path: str
    """Below the store's root: all of one life, and nothing else, lies in one folder."""
    ref: RuntimeRef | None = None
    facts: ArchiveFacts | None = None
    problem: str = ""


class Archives(Protocol):
    """Stores of archives. Raises `StoreError`, `ArchiveCorrupt` or `ArchiveOutdated`."""

    async def preflight(self, layer_bytes: int | None) -> None:
        """The store can be written and has room for `layer_bytes` (None: for a little)."""

    async def export(self, request: ArchiveRequest, layer: Layer) -> ArchiveFacts:
        """Write, fsync, read back and verify against the manifest and against an independent walk of the layer. Only
        then does it return. A finished archive of the same sequence is never touched: one that verifies and is of the
        layer as it is now is returned as it is. Raises `ArchiveOutdated` for one of the layer as it was earlier, and
        `ArchiveCorrupt` for a bad one: then another sequence is needed."""

    async def restore(self, archive: ArchiveFacts, layer: Layer) -> None:
        """Verify the hash that the catalogue knows, extract in a jail into staging, fsync, rename into place."""

    async def verify(self, archive: ArchiveFacts) -> None: ...

    async def compare(self, archive: ArchiveFacts, layer: Layer) -> None:
        """Hold the layer as it is now against the archive's manifest; the bytes are counted, and not read. Raises
        `ArchiveOutdated` if anything in the layer was changed since the archive was made of it, `ArchiveCorrupt` if the
        archive is not all there."""

    async def delete(self, archive: ArchiveFacts) -> None:
        """Remove the manifest, then the bytes. Not there: nothing."""

    def survey(self, installation: InstallationId) -> AsyncIterator[StoredArchive]:
        """All that the store holds of this installation, with what is odd there: one life after the other, oldest first."""

    async def list(self, installation: InstallationId, identity_of: RuntimeRef) -> Sequence[int]:
        """Sequences of what the store holds under the name of this runtime, whatever its uid."""
