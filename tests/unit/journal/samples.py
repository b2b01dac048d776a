"""Records and rows with every field set, for the tests of the journal."""

from __future__ import annotations

from perdure.api.conditions import Reason
from perdure.api.names import ChainId, Kind, NamespaceUid, NodeId, OperationId, RuntimeRef, SnapshotKey, Uid
from perdure.api.phases import Phase
from perdure.plan.health import HealthKind, ProbeKind
from perdure.plan.world import (
    ArchiveFacts,
    Exit,
    Halted,
    Op,
    OpenOperation,
    Outcome,
    Record,
    Source,
    Workspace,
)
from perdure.reconcile.ports.journal import HealthRow, OperationFinished, OperationRow, OperationStarted


def ref(n: int = 1) -> RuntimeRef:
    return RuntimeRef(Kind.BOT, "team-a", f"bot-{n}", Uid(f"uid-{n}"), NamespaceUid("ns-1"))


def archive(n: int = 1, sequence: int = 7) -> ArchiveFacts:
    return ArchiveFacts(
        sequence=sequence,
        kind=Kind.BOT,
        namespace="team-a",
        name=f"bot-{n}",
        uid=Uid(f"uid-{n}"),
        store="default",
        node_id=NodeId("node-1"),
        snapshot_key=SnapshotKey(f"br-uid-{n}-1"),
        image="example/image:1",
        image_digest="sha256:aa",
        chain_id=ChainId("sha256:bb"),
        sha256="cc",
        bytes=10,
        entries=2,
        uncompressed_bytes=20,
        empty=False,
    )


def record(n: int = 1, operations: int = 0) -> Record:
    return Record(
        ref=ref(n),
        newest_n=1,
        workspace=Workspace(
            key=SnapshotKey(f"br-uid-{n}-1"),
            n=1,
            image="example/image:1",
            image_digest="sha256:aa",
            chain_id=ChainId("sha256:bb"),
            prepared=True,
            gate=archive(n),
            restored_from="br-bot-7",
            ever_started=True,
            archived=archive(n, 8),
        ),
        operations=operations,
        operation=OpenOperation(OperationId(f"uid-{n}/{operations}"), Op.START, Source.KUBECTL, 1.5, Phase.PENDING),
        phase=Phase.STOPPED,
        started_at=1.25,
        stopped_at=2.5,
        running=True,
        restarts=3,
        failures_in_row=2,
        next_start_at=9.0,
        last_exit=Exit(137, 3.0, oom=True),
        halted=Halted(Reason.COMPLETED, "hash"),
        deletion_seen=True,
        force_released=True,
        released=True,
    )


def health_row(n: int = 1) -> HealthRow:
    return HealthRow(f"event-{n}", ref(n), HealthKind.PROBE_FAILED, 3.0, "why “so”\n", ProbeKind.READINESS, 137)


def rows(n: int = 1) -> tuple[OperationRow, OperationRow]:
    identity = OperationId(f"operation-{n}")
    return (
        OperationStarted(identity, ref(n), Op.START, Source.AUTO_RECONCILE, 1.0, Phase.PENDING, "image"),
        OperationFinished(
            identity,
            ref(n),
            2.0,
            Outcome.FAILURE,
            Phase.FAILED,
            "StartFailed",
            "why “so”\n",
            SnapshotKey("k-1"),
            "image",
        ),
    )
