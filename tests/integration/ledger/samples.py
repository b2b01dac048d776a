"""Runtimes, rows and archives as the ledger's tests write them."""

from __future__ import annotations

from dataclasses import replace

from perdure.api.archive import object_name
from perdure.api.names import ChainId, Kind, NamespaceUid, NodeId, NodeName, OperationId, RuntimeRef, SnapshotKey, Uid
from perdure.api.phases import Phase
from perdure.ledger.database import Connection
from perdure.ledger.migrate import applied_to, check_applied
from perdure.plan.world import ArchiveFacts, Op, Outcome, Source, Workspace
from perdure.reconcile.ports.journal import OperationFailing, OperationFinished, OperationStarted
from perdure.reconcile.ports.ledger import AgentLedger, Lease

NODE_A, NODE_B = NodeId("node-a"), NodeId("node-b")
NAME_A, NAME_B = NodeName("a"), NodeName("b")
TTL = 60.0


def ref(
    uid: str = "uid-1",
    *,
    name: str = "bot",
    namespace: str = "team-a",
    namespace_uid: str = "ns-1",
    kind: Kind = Kind.BOT,
) -> RuntimeRef:
    return RuntimeRef(kind, namespace, name, Uid(uid), NamespaceUid(namespace_uid))


def started(of: RuntimeRef, n: int = 1, *, op: Op = Op.START, at: float = 100.0) -> OperationStarted:
    return OperationStarted(OperationId(f"{of.uid}/{n}"), of, op, Source.KUBECTL, at, Phase.PENDING, "image:1")


def failing(of: RuntimeRef, n: int = 1, *, at: float = 100.5, error_code: str, message: str) -> OperationFailing:
    return OperationFailing(OperationId(f"{of.uid}/{n}"), of, at, error_code, message)


def finished(
    of: RuntimeRef,
    n: int = 1,
    *,
    at: float = 101.0,
    after: Phase = Phase.RUNNING,
    snapshot_key: str | None = None,
    message: str = "",
    numbered_from: float = 1.0,
) -> OperationFinished:
    """The `n`-th operation, as the journal that began to count at `numbered_from` has it."""
    id_, key = OperationId(f"{of.uid}/{n}"), SnapshotKey(snapshot_key) if snapshot_key else None
    return OperationFinished(id_, of, at, Outcome.SUCCESS, after, "", message, key, "image:1", numbered_from, n)


def workspace(of: RuntimeRef, n: int = 1) -> Workspace:
    return Workspace(of.snapshot_key(n), n, "image:1", "sha256:aa", ChainId("sha256:bb"), prepared=True)


def archive(of: RuntimeRef, sequence: int, *, node: NodeId | None = NODE_A, empty: bool = False) -> ArchiveFacts:
    return ArchiveFacts(
        sequence=sequence,
        kind=of.kind,
        namespace=of.namespace,
        name=of.name,
        uid=of.uid,
        store="default",
        node_id=node,
        snapshot_key=of.snapshot_key(1),
        image="image:1",
        image_digest="sha256:aa",
        chain_id=ChainId("sha256:bb"),
        sha256=f"{sequence:064x}",
        bytes=10**12,
        entries=0 if empty else 3,
        uncompressed_bytes=2 * 10**12,
        empty=empty,
    )


async def archived(
    ledger: AgentLedger,
    of: RuntimeRef,
    lease: Lease,
    operation: str,
    *,
    node: NodeId | None = NODE_A,
    empty: bool = False,
) -> ArchiveFacts:
    """A verified archive of this life, as an export leaves it in the catalogue."""
    sequence = await ledger.begin_archive(OperationId(operation), of, workspace(of), NODE_A, lease)
    facts = archive(of, sequence, node=node, empty=empty)
    await ledger.finish_archive(facts, lease)
    return replace(facts, object_name=object_name(of.kind, of.name, sequence))


async def schema_is_ours(connection: Connection) -> None:
    """Raises `LedgerUnavailable` for another schema than this program's."""
    check_applied(await applied_to(connection))
