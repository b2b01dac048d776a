"""Both ledger ports in memory, for the crash matrix. They pass `tests/contract/test_ledger_contract.py`, as PostgreSQL.

What was written is in a `LedgerTables`, which outlives the ledger objects and is shared by all of them, as a database
is. Time is the `now` of the tables: tests set it to let leases run out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from perdure.api.archive import object_name as object_name_of
from perdure.api.conditions import Reason
from perdure.api.names import (
    Identity,
    NamespaceUid,
    NodeId,
    NodeName,
    OperationId,
    RuntimeRef,
    SnapshotKey,
    Uid,
    generation,
)
from perdure.api.phases import Phase, may_follow
from perdure.api.runtime import Restore, RestorePolicy
from perdure.plan.allotment import (
    DEFAULT_RANGE,
    Exhausted,
    NodePort,
    NodePorts,
    PortDemand,
    PortRange,
    Reservation,
    Taken,
    allot,
    redraw,
    refusal_of_exhausted,
    refusal_of_taken,
)
from perdure.plan.binding import Refused
from perdure.plan.certainty import Certain, Present, Unknown
from perdure.plan.operations import entry_operation_id
from perdure.plan.world import ArchiveFacts, Bound, LedgerFacts, Op, Outcome, Source, Workspace
from perdure.reconcile.ports.errors import LeaseBusy, LedgerUnavailable, PortError, RowRefused, StaleFence
from perdure.reconcile.ports.journal import (
    HealthRow,
    LedgerRow,
    OperationFailing,
    OperationFinished,
    OperationStarted,
)
from perdure.reconcile.ports.ledger import Binding, BoundRow, Catalogued, Lease, LedgerIdentity

LAST_MOMENT = 9_224_318_016_000.0
"""As PostgreSQL has it: the end of the year 294276."""
Hook = Callable[[str, Literal["before", "after"]], None]
"""Called around every call with its name (`ledger.begin`); what it raises is the kill."""


@dataclass(slots=True)
class OperationEntry:
    """A row of `operations`."""

    id: OperationId
    ref: RuntimeRef
    op: Op | None = None
    source: Source | None = None
    started_at: float | None = None
    finished_at: float | None = None
    before: Phase | None = None
    after: Phase | None = None
    outcome: Outcome | None = None
    error_code: str = ""
    message: str = ""
    fence: int | None = None
    correlation: str = ""


@dataclass(slots=True)
class RuntimeEntry:
    """A row of `runtimes`."""

    ref: RuntimeRef
    state: Phase | None = None
    counted: tuple[float, int] | None = None
    """Which journal counted the newest finished operation, and as what."""
    refused: int = 0
    snapshot_key: SnapshotKey | None = None
    released: bool = False
    force_release_reason: str | None = None


@dataclass(slots=True)
class LeaseEntry:
    holder: NodeId
    token: str
    fence: int
    expires_at: float


@dataclass(slots=True)
class PortEntry:
    """A row of `ports`, without its key."""

    uid: Uid
    reservation: Reservation
    reserved_at: float
    published: bool = False


ArchiveState = Literal["writing", "verified", "quarantined", "purging", "purged"]


@dataclass(slots=True)
class ArchiveEntry:
    """A row of `archives`."""

    facts: ArchiveFacts
    ref: RuntimeRef
    operation: OperationId
    state: ArchiveState = "writing"
    published: bool = False
    unpublished: bool = False
    put_away: bool = False
    removing: bool = False


@dataclass(slots=True)
class LedgerTables:
    """What survives every process. `away`, when set, is why the ledger does not answer."""

    id: str = "fake-ledger"
    now: Callable[[], float] = lambda: 0.0
    away: str | None = None
    bindings: dict[Uid, Binding] = field(default_factory=dict)
    runtimes: dict[Uid, RuntimeEntry] = field(default_factory=dict)
    operations: dict[OperationId, OperationEntry] = field(default_factory=dict)
    health_events: dict[str, HealthRow] = field(default_factory=dict)
    leases: dict[str, LeaseEntry] = field(default_factory=dict)
    archives: dict[int, ArchiveEntry] = field(default_factory=dict)
    ports: dict[tuple[NodeId, NodePort], PortEntry] = field(default_factory=dict)
    port_ranges: dict[NodeId, tuple[PortRange, int]] = field(default_factory=dict)
    """What Dynamic ports of a node are drawn from, and the number that was drawn last."""
    fence: int = 0

    def node_ports(self, node: NodeId, uid: Uid) -> NodePorts:
        here = {at: entry for (where, at), entry in self.ports.items() if where == node}
        mine = {at: entry for at, entry in here.items() if entry.uid == uid}
        return NodePorts(
            mine={at: entry.reservation for at, entry in mine.items()},
            others={at: entry.uid for at, entry in here.items() if entry.uid != uid},
            latest=self.port_ranges[node][1] if node in self.port_ranges else 0,
            published=frozenset(entry.reservation.name for entry in mine.values() if entry.published),
        )

    def identity(self) -> LedgerIdentity:
        return LedgerIdentity(self.id, max((lease.fence for lease in self.leases.values()), default=0))

    def runtime(self, ref: RuntimeRef) -> RuntimeEntry:
        return self.runtimes.setdefault(ref.uid, RuntimeEntry(ref))

    def bound(self, uid: Uid) -> Bound | None:
        binding, runtime = self.bindings.get(uid), self.runtimes.get(uid)
        return Bound(binding.node_id, runtime.ref.namespace_uid) if binding and runtime else None

    def verified(self, identity: Identity) -> list[ArchiveEntry]:
        """Of the identity, oldest first."""
        return [
            entry
            for _, entry in sorted(self.archives.items())
            if entry.state == "verified" and entry.ref.identity == identity
        ]

    def purgeable(self, ref: RuntimeRef) -> list[ArchiveEntry]:
        """Of the identity, oldest first."""
        return [
            entry
            for _, entry in sorted(self.archives.items())
            if entry.state != "purged" and entry.ref.identity == ref.identity and not self.is_spared(entry, ref.uid)
        ]

    def spared(self, ref: RuntimeRef) -> frozenset[int]:
        return frozenset(
            sequence
            for sequence, entry in self.archives.items()
            if entry.state != "purged" and entry.ref.identity == ref.identity and self.is_spared(entry, ref.uid)
        )

    def is_spared(self, entry: ArchiveEntry, uid: Uid) -> bool:
        """From a purge of that life: to be retained, or of another life that is not known to have been bound earlier."""
        bound, of = list(self.bindings), entry.facts.uid
        both = uid in self.bindings and of in self.bindings
        is_no_later = of == uid or (both and bound.index(of) <= bound.index(uid))
        return entry.facts.retain or not is_no_later

    def unfinished(self, uid: Uid) -> tuple[OperationId, ...]:
        """Oldest first."""
        rows = [row for row in self.operations.values() if row.ref.uid == uid and row.finished_at is None]
        return tuple(
            row.id
            for row in sorted(rows, key=lambda row: (row.started_at or 0.0, row.id))
            if row.started_at is not None
        )

    def put_away(self, ref: RuntimeRef) -> ArchiveFacts | None:
        """What holds the newest data of this life that is known."""
        this = self.runtimes.get(ref.uid)
        found = (
            entry.facts
            for entry in reversed(self.verified(ref.identity))
            if (entry.put_away or entry.removing)
            and this is not None
            and (entry.facts.uid, entry.facts.snapshot_key) == (ref.uid, this.snapshot_key)
        )
        return next(found, None)

    def latest(self, identity: Identity) -> ArchiveFacts | None:
        return next((entry.facts for entry in reversed(self.verified(identity)) if not entry.facts.empty), None)

    def quarantined(self, identity: Identity) -> int | None:
        """The newest of the identity."""
        bad = (
            number
            for number, entry in self.archives.items()
            if entry.state == "quarantined" and entry.ref.identity == identity
        )
        return max(bad, default=None)

    def named(self, ref: RuntimeRef, restore: Restore) -> ArchiveFacts | None:
        if restore.policy is not RestorePolicy.ARCHIVE or not restore.archive:
            return None
        for entry in self.archives.values():
            of = entry.ref.namespace_uid, entry.ref.namespace, entry.facts.object_name, entry.state
            if of == (ref.namespace_uid, ref.namespace, restore.archive, "verified"):
                return entry.facts
        return None


class _Fake:
    def __init__(self, tables: LedgerTables | None = None, on_call: Hook | None = None) -> None:
        self.tables = tables or LedgerTables()
        self._on_call = on_call

    def _before(self, name: str) -> None:
        if self._on_call is not None:
            self._on_call(f"ledger.{name}", "before")
        if self.tables.away is not None:
            raise LedgerUnavailable(f"{name}: {self.tables.away}")

    def _after(self, name: str) -> None:
        if self._on_call is not None:
            self._on_call(f"ledger.{name}", "after")

    async def identity(self) -> LedgerIdentity:
        self._before("identity")
        return self.tables.identity()


class FakeAgentLedger(_Fake):
    def __init__(
        self,
        node: NodeId,
        tables: LedgerTables | None = None,
        on_call: Hook | None = None,
        monotonic: Callable[[], float] | None = None,
    ) -> None:
        """`monotonic`: the caller's clock, on which leases are told to run out; by default that of the tables."""
        super().__init__(tables, on_call)
        self._node = node
        self._monotonic = monotonic or self.tables.now

    async def facts(self, ref: RuntimeRef, restore: Restore) -> Certain[LedgerFacts]:
        try:
            self._before("facts")
        except LedgerUnavailable as error:
            return Unknown(str(error))
        this = self.tables.runtimes.get(ref.uid, RuntimeEntry(ref))
        return Present(
            LedgerFacts(
                bound=self.tables.bound(ref.uid),
                data_seen=this.snapshot_key,
                released=this.released,
                force_released=this.force_release_reason is not None,
                latest=self.tables.latest(ref.identity),
                quarantined=self.tables.quarantined(ref.identity),
                named=self.tables.named(ref, restore),
                unarchived=tuple(
                    other.ref.uid
                    for other in self.tables.runtimes.values()
                    if other.ref.identity == ref.identity
                    and other.ref.uid != ref.uid
                    and other.snapshot_key is not None
                    and not other.released
                    and self.tables.put_away(other.ref) is None
                ),
                given_up=tuple(
                    other.ref.uid
                    for other in self.tables.runtimes.values()
                    if other.ref.identity == ref.identity
                    and other.ref.uid != ref.uid
                    and other.force_release_reason is not None
                    and not other.released
                ),
                put_away=self.tables.put_away(ref),
                unfinished=self.tables.unfinished(ref.uid),
                purgeable=tuple(entry.facts.sequence for entry in self.tables.purgeable(ref)),
                spared=tuple(sorted(self.tables.spared(ref))),
            )
        )

    # ------------------------------------------------------------------------------------------ operations

    async def apply(self, rows: Sequence[LedgerRow], node: NodeName) -> None:
        self._before("apply")
        if any(row.at > LAST_MOMENT for row in rows):
            raise RowRefused("writing rows: timestamp out of range")
        for row in rows:
            if isinstance(row, OperationStarted):
                self._start(row, None)
            elif isinstance(row, HealthRow):
                self.tables.health_events.setdefault(row.id, row)
            elif isinstance(row, OperationFailing):
                entry = self.tables.operations.get(row.id)
                if entry is not None and entry.finished_at is None:
                    entry.error_code, entry.message = row.error_code, row.message
            elif self._finish(row, None):
                self._move(row, release=False)
        self._after("apply")

    async def begin(self, row: OperationStarted, node: NodeName, lease: Lease) -> None:
        self._before("begin")
        self._check(lease)
        self._start(row, lease.fence)
        self._after("begin")

    async def finish(self, row: OperationFinished, node: NodeName, lease: Lease, *, release: bool) -> None:
        self._before("finish")
        self._check(lease)
        self._finish(row, lease.fence)
        self._move(row, release=release)
        self._after("finish")

    def _start(self, row: OperationStarted, fence: int | None) -> None:
        entry = self.tables.operations.setdefault(row.id, OperationEntry(row.id, row.ref))
        if fence is not None and (entry.started_at is None or entry.finished_at is None):
            entry.fence = max(fence, entry.fence or 0)
        if entry.started_at is None:
            entry.op, entry.source, entry.started_at, entry.before = row.op, row.source, row.at, row.before
            entry.correlation = row.correlation

    def _finish(self, row: OperationFinished, fence: int | None) -> bool:
        entry = self.tables.operations.setdefault(row.id, OperationEntry(row.id, row.ref, fence=fence))
        if entry.finished_at is not None:
            return False
        entry.finished_at, entry.after, entry.outcome = row.at, row.after, row.outcome
        entry.error_code, entry.message = row.error_code, row.message
        return True

    def _move(self, row: OperationFinished, *, release: bool) -> None:
        runtime = self.tables.runtime(row.ref)
        if runtime.released:
            return
        counted = row.numbered_from, row.n
        if runtime.counted is None or runtime.counted[0] != counted[0] or runtime.counted[1] <= counted[1]:
            if may_follow(runtime.state, row.after):
                runtime.state = row.after
            else:
                runtime.refused += 1
            runtime.counted = counted
        keys = (key for key in (runtime.snapshot_key, row.snapshot_key) if key is not None)
        runtime.snapshot_key = max(keys, key=generation, default=None)
        runtime.released = release

    # ------------------------------------------------------------------------------------------ leases

    async def acquire(self, key: str, ttl: float) -> Lease:
        self._before("acquire")
        held = self.tables.leases.get(key)
        now = self.tables.now()
        if held is not None and held.token and held.holder != self._node and held.expires_at > now:
            raise LeaseBusy(key, held.holder, held.expires_at - now)
        self.tables.fence += 1
        token = f"token-{self.tables.fence}"
        self.tables.leases[key] = LeaseEntry(self._node, token, self.tables.fence, now + ttl)
        self._after("acquire")
        return Lease(key, token, self.tables.leases[key].fence, self._monotonic() + ttl)

    async def renew(self, lease: Lease, ttl: float) -> Lease:
        self._before("renew")
        held = self._own(lease)
        if held is None:
            raise StaleFence(f"renewing the lease {lease.key}: it is no longer ours")
        held.expires_at = self.tables.now() + ttl
        self._after("renew")
        return replace(lease, expires_at=self._monotonic() + ttl)

    async def renew_all(self, leases: Sequence[Lease], ttl: float) -> Sequence[Lease]:
        self._before("renew_all")
        ours = [lease for lease in leases if self._own(lease) is not None]
        for lease in ours:
            self.tables.leases[lease.key].expires_at = self.tables.now() + ttl
        self._after("renew_all")
        return tuple(replace(lease, expires_at=self._monotonic() + ttl) for lease in ours)

    async def release(self, lease: Lease) -> None:
        self._before("release")
        held = self._own(lease)
        if held is not None:
            held.token, held.expires_at = "", self.tables.now()
        self._after("release")

    def _own(self, lease: Lease) -> LeaseEntry | None:
        held = self.tables.leases.get(lease.key)
        return held if held is not None and (held.token, held.fence) == (lease.token, lease.fence) else None

    def _check(self, lease: Lease) -> None:
        held = self._own(lease)
        if held is None or held.expires_at <= self.tables.now():
            raise StaleFence(f"the lease {lease.key} (fence {lease.fence}) was taken over or has run out")

    # ------------------------------------------------------------------------------------------ archives

    async def begin_archive(
        self, operation: OperationId, ref: RuntimeRef, workspace: Workspace, node: NodeId, lease: Lease
    ) -> int:
        self._before("begin_archive")
        self._check(lease)
        known = {
            entry.operation: sequence
            for sequence, entry in self.tables.archives.items()
            if entry.state in ("writing", "verified")
        }
        sequence = known.get(operation) or max(self.tables.archives, default=0) + 1
        if operation not in known:
            self.tables.archives[sequence] = ArchiveEntry(
                ArchiveFacts(
                    sequence=sequence,
                    kind=ref.kind,
                    namespace=ref.namespace,
                    name=ref.name,
                    uid=ref.uid,
                    store="",
                    node_id=node,
                    snapshot_key=workspace.key,
                    image=workspace.image,
                    image_digest=workspace.image_digest,
                    chain_id=workspace.chain_id,
                    sha256="",
                    bytes=0,
                    entries=0,
                    uncompressed_bytes=0,
                    empty=False,
                ),
                ref,
                operation,
            )
        self._after("begin_archive")
        return sequence

    async def finish_archive(self, archive: ArchiveFacts, lease: Lease) -> None:
        self._before("finish_archive")
        self._check(lease)
        entry = self.tables.archives.get(archive.sequence)
        if (
            entry is None
            or (entry.facts.uid, entry.facts.snapshot_key) != (archive.uid, archive.snapshot_key)
            or not (entry.state == "writing" or (entry.state == "verified" and entry.facts.sha256 == archive.sha256))
        ):
            raise LedgerUnavailable(f"entering archive {archive.sequence}: not as this archive being written")
        name = object_name_of(archive.kind, archive.name, archive.sequence)
        entry.facts = replace(archive, retain=entry.facts.retain, object_name=name)
        entry.state = "verified"
        self._after("finish_archive")

    async def catalogued(self, found: ArchiveFacts) -> Catalogued:
        self._before("catalogued")
        return self._catalogued(found)

    def _catalogued(self, found: ArchiveFacts) -> Catalogued:
        entry = self.tables.archives.get(found.sequence)
        if entry is None:
            far = found.sequence > max(self.tables.archives, default=0) + 1_000_000
            return Catalogued.TOO_FAR if far else Catalogued.NOTHING
        if entry.state == "quarantined":
            return Catalogued.QUARANTINED
        if entry.state in ("purging", "purged"):
            return Catalogued.PURGED
        if (entry.facts.uid, entry.facts.snapshot_key) != (found.uid, found.snapshot_key):
            return Catalogued.OTHER
        if entry.state == "writing":
            return Catalogued.UNFINISHED
        return Catalogued.SAME if entry.facts.sha256 == found.sha256 else Catalogued.OTHER

    async def enter_archive(
        self, found: ArchiveFacts, ref: RuntimeRef, request: str, node: NodeName, lease: Lease, *, all_there_is: bool
    ) -> Catalogued:
        self._before("enter_archive")
        self._check(lease)
        known = self._catalogued(found)
        if known not in (Catalogued.NOTHING, Catalogued.UNFINISHED):
            return known
        id_ = entry_operation_id(ref.uid, found.sequence, found.sha256)
        now, name = self.tables.now(), object_name_of(ref.kind, ref.name, found.sequence)
        entry = self.tables.archives.setdefault(found.sequence, ArchiveEntry(found, ref, id_))
        entry.facts, entry.state = replace(found, retain=entry.facts.retain, object_name=name), "verified"
        entry.put_away = all_there_is
        runtime = self.tables.runtimes.get(ref.uid)
        if all_there_is and runtime is not None and runtime.snapshot_key is not None and not runtime.released:
            runtime.snapshot_key = max(runtime.snapshot_key, found.snapshot_key, key=generation)
        self.tables.operations.setdefault(
            id_,
            OperationEntry(
                id_, ref, Op.ADOPT, Source.ADMIN_CLI, now, now, outcome=Outcome.SUCCESS, fence=lease.fence,
                correlation=request,
            ),
        )  # fmt: skip
        self._after("enter_archive")
        return Catalogued.SAME

    async def purgeable(self, ref: RuntimeRef) -> Sequence[ArchiveFacts]:
        self._before("purgeable")
        return tuple(entry.facts for entry in self.tables.purgeable(ref))

    async def spared(self, ref: RuntimeRef) -> frozenset[int]:
        self._before("spared")
        return self.tables.spared(ref)

    async def announce_removal(self, sequence: int, lease: Lease) -> None:
        self._before("announce_removal")
        self._check(lease)
        entry = self.tables.archives.get(sequence)
        if entry is None or entry.state != "verified":
            raise LedgerUnavailable(f"announcing that the snapshot of archive {sequence} is removed: there is none")
        entry.removing = True
        self._after("announce_removal")

    async def take_removal_back(self, ref: RuntimeRef, key: SnapshotKey, lease: Lease) -> None:
        self._before("take_removal_back")
        self._check(lease)
        for entry in self.tables.archives.values():
            if (entry.ref, entry.facts.snapshot_key) == (ref, key) and not entry.put_away:
                entry.removing = False
        self._after("take_removal_back")

    async def put_away(self, sequence: int, lease: Lease) -> None:
        self._before("put_away")
        self._check(lease)
        entry = self.tables.archives.get(sequence)
        if entry is None or entry.state != "verified":
            raise LedgerUnavailable(f"recording that data is in archive {sequence}: the catalogue has none")
        entry.put_away = True
        self._after("put_away")

    async def mark_purging(self, ref: RuntimeRef, sequence: int, lease: Lease) -> None:
        self._before("mark_purging")
        self._check(lease)
        entry = self.tables.archives.get(sequence)
        if entry is None or entry.state == "purged" or self.tables.is_spared(entry, ref.uid):
            raise PortError(f"marking archive {sequence} for its purge: not to be purged", reason=Reason.PURGE_FAILED)
        entry.state = "purging"
        self._after("mark_purging")

    async def purging(self, node: NodeId) -> Sequence[ArchiveFacts]:
        self._before("purging")
        return tuple(
            entry.facts
            for _, entry in sorted(self.tables.archives.items())
            if entry.state == "purging" and entry.facts.node_id in (None, node)
        )

    async def mark_purged(self, sequence: int) -> None:
        self._before("mark_purged")
        entry = self.tables.archives.get(sequence)
        if entry is None or entry.state not in ("purging", "purged"):
            raise PortError(f"marking archive {sequence} as purged: never begun", reason=Reason.PURGE_FAILED)
        entry.state = "purged"
        self._after("mark_purged")

    async def quarantine(self, sequence: int, why: str) -> None:
        self._before("quarantine")
        entry = self.tables.archives.get(sequence)
        if entry is not None and entry.state in ("writing", "verified"):
            entry.state = "quarantined"
        self._after("quarantine")

    # ------------------------------------------------------------------------------------------ ports

    async def replace_port(self, ref: RuntimeRef, node: NodeName, name: str, taken: int) -> int | Refused | None:
        self._before("replace_port")
        within, _ = self.tables.port_ranges.get(self._node, (DEFAULT_RANGE, 0))
        known = self.tables.node_ports(self._node, ref.uid)
        answer = redraw(name, taken, known, within, node)
        if isinstance(answer, int) and answer != known.number_of(name):
            for at in [at for at, reservation in known.mine.items() if reservation.name == name]:
                entry = replace(self.tables.ports.pop((self._node, at)), reserved_at=self.tables.now())
                self.tables.ports[self._node, NodePort(at.transport, answer)] = entry
            self.tables.port_ranges[self._node] = within, answer
        self._after("replace_port")
        return answer

    async def ports_published(self, ref: RuntimeRef, published: Mapping[str, int]) -> bool:
        self._before("ports_published")
        held = set()
        for (node, at), entry in self.tables.ports.items():
            name = entry.reservation.name
            if (node, entry.uid) == (self._node, ref.uid) and published.get(name) == at.number:
                entry.published = True
                held.add(name)
        self._after("ports_published")
        return held == set(published)


class FakeControllerLedger(_Fake):
    async def read(self, ref: RuntimeRef, restore: Restore) -> BoundRow:
        self._before("read")
        archive = None
        if restore.policy is RestorePolicy.LATEST:
            archive = self.tables.latest(ref.identity)
        elif restore.policy is RestorePolicy.ARCHIVE:
            archive = self.tables.named(ref, restore)
        runtime = self.tables.runtimes.get(ref.uid)
        return BoundRow(
            binding=self.tables.bindings.get(ref.uid),
            namespace_uid=runtime.ref.namespace_uid if runtime is not None else None,
            released=runtime is not None and runtime.released,
            latest_node=archive.node_id if archive else None,
            archive_known=archive is not None,
        )

    async def bind(
        self, ref: RuntimeRef, node: NodeName, node_id: NodeId, image: str, demand: PortDemand | None = None
    ) -> Binding | Refused:
        self._before("bind")
        binding = self.tables.bindings.get(ref.uid, Binding(ref.uid, node, node_id))
        numbers: tuple[tuple[str, int], ...] | Refused = () if demand is None else self._reserve(binding, demand)
        if isinstance(numbers, Refused):
            return numbers
        self.tables.bindings[ref.uid] = binding
        self.tables.runtime(ref)
        self._after("bind")
        return replace(binding, ports=numbers)

    def _reserve(self, binding: Binding, demand: PortDemand) -> tuple[tuple[str, int], ...] | Refused:
        node, uid = binding.node_id, binding.uid
        known = self.tables.node_ports(node, uid)
        answer = allot(demand, known)
        if isinstance(answer, Taken):
            holder = self.tables.runtimes[answer.by].ref if answer.by is not None else None
            told = f"{holder.kind} {holder.namespace}/{holder.name}" if holder is not None else None
            return refusal_of_taken(answer, binding.node_name, told)
        if isinstance(answer, Exhausted):
            return refusal_of_exhausted(answer.port.name, demand.within, binding.node_name)
        for at in answer.drop:
            del self.tables.ports[node, at]
        for at, reservation in answer.put.items():
            entry = self.tables.ports.setdefault((node, at), PortEntry(uid, reservation, self.tables.now()))
            entry.reservation = reservation
        self.tables.port_ranges[node] = demand.within, answer.latest
        return answer.numbers

    async def free_ports(self, ref: RuntimeRef) -> None:
        self._before("free_ports")
        self.tables.ports = {key: entry for key, entry in self.tables.ports.items() if entry.uid != ref.uid}
        self._after("free_ports")

    async def abandoned_ports(self, unpublished_for: float) -> Sequence[RuntimeRef]:
        self._before("abandoned_ports")
        until = self.tables.now() - unpublished_for
        found = []
        for uid in dict.fromkeys(entry.uid for entry in self.tables.ports.values()):
            runtime = self.tables.runtimes[uid]
            of_it = [entry for entry in self.tables.ports.values() if entry.uid == uid]
            idle = all(not entry.published and entry.reserved_at <= until for entry in of_it)
            if idle or runtime.released or runtime.force_release_reason is not None:
                found.append(runtime.ref)
        return tuple(found)

    async def unpublished(self, limit: int, *, after: int = 0, of: RuntimeRef | None = None) -> Sequence[ArchiveFacts]:
        self._before("unpublished")
        waiting = [
            entry.facts
            for number, entry in sorted(self.tables.archives.items())
            if entry.state == "verified"
            and not entry.published
            and number > after
            and (of is None or entry.facts.uid == of.uid)
        ]
        return tuple(waiting[:limit])

    async def published(self, sequence: int, object_name: str) -> None:
        self._before("published")
        entry = self.tables.archives.get(sequence)
        if entry is not None:
            entry.facts = replace(entry.facts, object_name=object_name or entry.facts.object_name)
            entry.published = True
        self._after("published")

    async def purged(self, limit: int, *, after: int = 0, of: RuntimeRef | None = None) -> Sequence[ArchiveFacts]:
        self._before("purged")
        waiting = [
            entry.facts
            for number, entry in sorted(self.tables.archives.items())
            if entry.state == "purged"
            and not entry.unpublished
            and number > after
            and (
                of is None
                or (entry.facts.kind, entry.facts.namespace, entry.facts.name) == (of.kind, of.namespace, of.name)
            )
        ]
        return tuple(waiting[:limit])

    async def unpublish(self, sequence: int) -> None:
        self._before("unpublish")
        entry = self.tables.archives.get(sequence)
        if entry is not None and entry.state == "purged":
            entry.unpublished = True
        self._after("unpublish")

    async def force_release(self, ref: RuntimeRef, reason: str) -> None:
        self._before("force_release")
        runtime = self.tables.runtime(ref)
        runtime.force_release_reason = runtime.force_release_reason or reason
        self._after("force_release")

    async def record_retained(self, namespace_uid: NamespaceUid, object_name: str, retain: bool) -> None:
        self._before("record_retained")
        for entry in self.tables.archives.values():
            if entry.ref.namespace_uid == namespace_uid and entry.facts.object_name == object_name:
                entry.facts = replace(entry.facts, retain=retain)
        self._after("record_retained")
