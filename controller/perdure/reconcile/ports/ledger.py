"""The ledger as the agent and as the controller need it, and the leases that it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from perdure.api.names import (
    Identity,
    NamespaceUid,
    NodeId,
    NodeName,
    OperationId,
    RuntimeRef,
    Uid,
)
from perdure.api.runtime import Restore
from perdure.plan.certainty import Certain
from perdure.plan.world import (
    ArchiveFacts,
    LedgerFacts,
    Workspace,
)
from perdure.reconcile.ports.journal import OperationFinished, OperationRow, OperationStarted


@dataclass(frozen=True, slots=True)
class Lease:
    """Exclusion for one long or destructive operation. `fence` rises with each taking; the database refuses less."""

    key: str
    token: str
    fence: int
    expires_at: float
    """On this process's monotonic clock, reckoned from before the request was sent: never later than the database's."""


@dataclass(frozen=True, slots=True)
class LedgerIdentity:
    id: str
    highest_fence: int


@dataclass(frozen=True, slots=True)
class Binding:
    uid: Uid
    node_name: NodeName
    node_id: NodeId


class AgentLedger(Protocol):
    """What an agent needs of the ledger. Raises `LedgerUnavailable`, `StaleFence`."""

    async def identity(self) -> LedgerIdentity: ...

    async def facts(self, ref: RuntimeRef, restore: Restore) -> Certain[LedgerFacts]:
        """Never raises: what cannot be asked is `Unknown`."""

    async def apply(self, rows: Sequence[OperationRow], node: NodeName) -> None:
        """Write rows in order; one that is there already is left as it is. An `OperationFinished` also moves the
        runtime's row (state, snapshot, image) in the same statement, unless that row is newer."""

    async def acquire(self, key: str, ttl: float) -> Lease:
        """Take a lease, or take it over from an earlier process of the same node, with a higher fence.
        Raises `PortError(InProgress)` while somebody else holds it."""

    async def renew(self, lease: Lease, ttl: float) -> Lease:
        """Raises `StaleFence` when it is no longer ours."""

    async def release(self, lease: Lease) -> None: ...

    async def begin(self, row: OperationStarted, node: NodeName, lease: Lease) -> None:
        """The intent row, committed, under the lease's fence."""

    async def begin_archive(
        self, operation: OperationId, ref: RuntimeRef, workspace: Workspace, node: NodeId, lease: Lease
    ) -> int:
        """A row for an archive that is about to be written, and its sequence; the same again for the same operation."""

    async def finish_archive(self, archive: ArchiveFacts, lease: Lease) -> None:
        """The archive counts from now on."""

    async def archives(self, identity: Identity, node: NodeId | None) -> Sequence[ArchiveFacts]:
        """Verified archives of the identity (readable on `node`, if given), oldest first."""

    async def purgeable(self, identity: Identity) -> Sequence[ArchiveFacts]:
        """Archives of the identity in any state but purged, without those to be retained; wherever they are."""

    async def mark_purging(self, sequence: int, lease: Lease) -> None:
        """A person wants it gone; the agent of the node that holds it deletes it."""

    async def purging(self, node: NodeId) -> Sequence[ArchiveFacts]:
        """What other nodes' purges left for this one to delete."""

    async def mark_purged(self, sequence: int) -> None:
        """The bytes are gone: proven by listing the store. Only from `purging`."""

    async def quarantine(self, sequence: int, why: str) -> None:
        """Never restored, never deleted from now on."""

    async def finish(self, row: OperationFinished, node: NodeName, lease: Lease, *, release: bool) -> None:
        """Close a durable operation; with `release`, the life is over in the same statement."""


@dataclass(frozen=True, slots=True)
class BoundRow:
    """What the controller reads about one object."""

    binding: Binding | None
    released: bool
    latest_node: NodeId | None
    """The only node that can read what `Latest` (or the named archive) would restore; None = anywhere."""
    archive_known: bool
    """Whether there is anything to restore at all."""


class ControllerLedger(Protocol):
    """What the controller needs of the ledger. Raises `LedgerUnavailable`, `StaleFence`."""

    async def identity(self) -> LedgerIdentity: ...

    async def read(self, ref: RuntimeRef, restore: Restore) -> BoundRow: ...

    async def bind(self, ref: RuntimeRef, node: NodeName, node_id: NodeId, image: str) -> Binding:
        """The binding, decided once: if there is one already, that one is returned."""

    async def unpublished(self, limit: int) -> Sequence[ArchiveFacts]:
        """Archives (verified) that have no RuntimeArchive object yet."""

    async def published(self, sequence: int, object_name: str) -> None: ...

    async def purged(self, limit: int) -> Sequence[ArchiveFacts]:
        """Purged archives whose RuntimeArchive object has not been taken down yet."""

    async def unpublish(self, sequence: int) -> None: ...

    async def force_release(self, ref: RuntimeRef, reason: str) -> None:
        """Record that a person gave the object up; its data stays an orphan."""

    async def record_retained(self, namespace_uid: NamespaceUid, object_name: str, retain: bool) -> None:
        """Carry `retain` of a RuntimeArchive into the catalogue, where a Purge looks."""
