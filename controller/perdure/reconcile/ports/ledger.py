"""The ledger as the agent and as the controller need it, and the leases that it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from perdure.api.names import (
    NamespaceUid,
    NodeId,
    NodeName,
    OperationId,
    RuntimeRef,
    SnapshotKey,
    Uid,
)
from perdure.api.runtime import Restore
from perdure.plan.allotment import PortDemand
from perdure.plan.binding import Refused
from perdure.plan.certainty import Certain
from perdure.plan.world import (
    ArchiveFacts,
    LedgerFacts,
    Workspace,
)
from perdure.reconcile.ports.journal import LedgerRow, OperationFinished, OperationStarted


@dataclass(frozen=True, slots=True)
class Lease:
    """Exclusion for one long or destructive operation. `fence` rises with each taking; the database refuses less."""

    key: str
    token: str
    fence: int
    expires_at: float
    """Seconds since this machine's boot, sleep among them, reckoned from before the request was sent: never later than
    the database's."""


@dataclass(frozen=True, slots=True)
class LedgerIdentity:
    id: str
    highest_fence: int


class LedgerJudge(Protocol):
    """Decides, for an adapter that has a new connection, whether what is at its other end is to be used."""

    @property
    def highest_fence(self) -> int:
        """That this node has seen: to be read before the ledger is asked, for it may rise meanwhile."""

    async def admit(self, identity: LedgerIdentity, seen: int) -> None:
        """`seen`: `highest_fence` from before it was asked. Raises `LedgerChanged`."""


@dataclass(frozen=True, slots=True)
class Binding:
    uid: Uid
    node_name: NodeName
    node_id: NodeId
    ports: tuple[tuple[str, int], ...] = ()
    """(name of the port, number on the node), by name: what was demanded with it."""


class Catalogued(StrEnum):
    """What the catalogue has under the sequence of an archive that was found in a store."""

    NOTHING = "nothing"
    SAME = "same"
    """This very archive, verified."""
    UNFINISHED = "unfinished"
    """This very archive, of which nobody has said yet that it was finished."""
    OTHER = "other"
    """Another archive: one of the two is not what it says."""
    QUARANTINED = "quarantined"
    PURGED = "purged"
    """A person wanted it gone."""
    TOO_FAR = "too_far"
    """No sequence that this ledger can have given out."""


class AgentLedger(Protocol):
    """What an agent needs of the ledger. Raises `LedgerUnavailable`, `StaleFence`."""

    async def identity(self) -> LedgerIdentity: ...

    async def facts(self, ref: RuntimeRef, restore: Restore) -> Certain[LedgerFacts]:
        """Never raises: what cannot be asked is `Unknown`."""

    async def apply(self, rows: Sequence[LedgerRow], node: NodeName) -> None:
        """Write rows in order; one that is there already is left as it is. An `OperationFinished` also moves the
        runtime's row (state, snapshot, image) in the same statement, unless that row is newer. All rows or none of them:
        `RowRefused` where one of them is never taken as it is."""

    async def acquire(self, key: str, ttl: float) -> Lease:
        """Take a lease, or take it over from an earlier process of the same node, with a higher fence.
        Raises `LeaseBusy` while somebody else holds it."""

    async def renew(self, lease: Lease, ttl: float) -> Lease:
        """Raises `StaleFence` when it is no longer ours."""

    async def renew_all(self, leases: Sequence[Lease], ttl: float) -> Sequence[Lease]:
        """All of them in one statement; returns those that are still ours."""

    async def release(self, lease: Lease) -> None: ...

    async def begin(self, row: OperationStarted, node: NodeName, lease: Lease) -> None:
        """The intent row, committed, under the lease's fence."""

    async def begin_archive(
        self, operation: OperationId, ref: RuntimeRef, workspace: Workspace, node: NodeId, lease: Lease
    ) -> int:
        """A row for an archive that is about to be written, and its sequence; the same again for the same operation."""

    async def finish_archive(self, archive: ArchiveFacts, lease: Lease) -> None:
        """The archive counts from now on."""

    async def announce_removal(self, sequence: int, lease: Lease) -> None:
        """The snapshot that this verified archive is of is about to be removed, and nothing is started on it before
        `take_removal_back`. Raises `LedgerUnavailable` if the catalogue has no such archive."""

    async def take_removal_back(self, ref: RuntimeRef, key: SnapshotKey, lease: Lease) -> None:
        """Nothing is announced of this snapshot any more. Nothing was: nothing."""

    async def put_away(self, sequence: int, lease: Lease) -> None:
        """The snapshot that this verified archive is of was removed by a clean-up: the data is here now.
        Raises `LedgerUnavailable` if the catalogue has no such archive."""

    async def catalogued(self, found: ArchiveFacts) -> Catalogued: ...

    async def enter_archive(
        self, found: ArchiveFacts, ref: RuntimeRef, request: str, node: NodeName, lease: Lease, *, all_there_is: bool
    ) -> Catalogued:
        """Enter an archive that lies verified in a store, with an operation's row (`adopt`), if the catalogue has nothing or
        something unfinished there: `SAME`. Else nothing is changed, and it says what is there. No later archive gets its
        sequence. `all_there_is`: nothing else is left of that life's data, so the data counts as put away in it."""

    async def purgeable(self, ref: RuntimeRef) -> Sequence[ArchiveFacts]:
        """Archives of the identity in any state but purged, wherever they are, without those to be retained and those of other
        lives that are not known to have been bound before `ref`: somebody may have made the object anew since its purge was
        asked for."""

    async def spared(self, ref: RuntimeRef) -> frozenset[int]:
        """Sequences of those: what a purge of `ref` leaves in its stores."""

    async def mark_purging(self, ref: RuntimeRef, sequence: int, lease: Lease) -> None:
        """A person wants it gone with `ref`; the agent of the node that holds it deletes it."""

    async def purging(self, node: NodeId) -> Sequence[ArchiveFacts]:
        """What other nodes' purges left for this one to delete."""

    async def mark_purged(self, sequence: int) -> None:
        """The bytes are gone: proven by listing the store. Only from `purging`."""

    async def quarantine(self, sequence: int, why: str) -> None:
        """Never restored, never deleted from now on."""

    async def finish(self, row: OperationFinished, node: NodeName, lease: Lease, *, release: bool) -> None:
        """Close a durable operation; with `release`, the life is over in the same statement."""

    async def replace_port(self, ref: RuntimeRef, node: NodeName, name: str, taken: int) -> int | Refused | None:
        """Another number for a Dynamic port whose number `taken` something else on this node listens on.

        One compare-and-set: a repetition gets the number of the first time. `Refused` (PortTaken) if the number was
        published or asked for, (PortRangeExhausted) if there is no other; None if nothing is reserved for that port here.
        """

    async def ports_published(self, ref: RuntimeRef, published: Mapping[str, int]) -> bool:
        """To be called before anything is served under these numbers: none of them ever changes from then on.

        False: not all of them are reserved on this node (any more); the numbers must be read again.
        """


@dataclass(frozen=True, slots=True)
class BoundRow:
    """What the controller reads about one object."""

    binding: Binding | None
    """As it was decided, without ports."""
    namespace_uid: NamespaceUid | None
    """Of its namespace, as it was read when this life was bound."""
    released: bool
    latest_node: NodeId | None
    """The only node that can read what `Latest` (or the named archive) would restore; None = anywhere."""
    archive_known: bool
    """Whether there is anything to restore at all."""


class ControllerLedger(Protocol):
    """What the controller needs of the ledger. Raises `LedgerUnavailable`, `StaleFence`."""

    async def identity(self) -> LedgerIdentity: ...

    async def read(self, ref: RuntimeRef, restore: Restore) -> BoundRow: ...

    async def bind(
        self, ref: RuntimeRef, node: NodeName, node_id: NodeId, image: str, demand: PortDemand | None = None
    ) -> Binding | Refused:
        """The binding, decided once: if there is one already, that one is returned.

        With a demand also the ports on that node, in the same transaction: all of them or, `Refused`, neither ports nor a
        new binding. What the runtime has and does not demand any more is given back. None: it neither has nor wants any.
        """

    async def free_ports(self, ref: RuntimeRef) -> None:
        """Give back all that this life has: it is over, or was never seen by its node."""

    async def abandoned_ports(self, unpublished_for: float) -> Sequence[RuntimeRef]:
        """Lives with ports that are over, or whose ports no node has shown for so many seconds. An object may still want
        them: the caller looks before it frees anything."""

    async def unpublished(self, limit: int, *, after: int = 0, of: RuntimeRef | None = None) -> Sequence[ArchiveFacts]:
        """Archives (verified) that have no RuntimeArchive object yet: at most `limit`, oldest first, with sequences above
        `after`; with `of` only those of this life."""

    async def published(self, sequence: int, object_name: str) -> None: ...

    async def purged(self, limit: int, *, after: int = 0, of: RuntimeRef | None = None) -> Sequence[ArchiveFacts]:
        """Purged archives whose RuntimeArchive object has not been taken down yet, in the same way; with `of` those of
        its kind, namespace and name."""

    async def unpublish(self, sequence: int) -> None: ...

    async def force_release(self, ref: RuntimeRef, reason: str) -> None:
        """Record that a person gave the object up; its data stays an orphan."""

    async def record_retained(self, namespace_uid: NamespaceUid, object_name: str, retain: bool) -> None:
        """Carry `retain` of a RuntimeArchive into the catalogue, where a Purge looks."""
