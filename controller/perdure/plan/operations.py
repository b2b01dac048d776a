"""Which operation is open while steps run: an intent is committed before the first effect, and closed when its end is
observed. The planner calls these; the rows end in the ledger."""

from __future__ import annotations

import uuid
from collections.abc import Set

from perdure.api.names import OperationId, Uid
from perdure.api.phases import Phase
from perdure.api.request import RequestId
from perdure.plan.steps import Begin, Finish
from perdure.plan.world import (
    AnsweredRequest,
    Code,
    Gone,
    Op,
    OpenOperation,
    Outcome,
    Record,
    Source,
    Terminating,
    Wanted,
    World,
)

TOWARDS_RUNNING = frozenset({Op.START, Op.RESTORE, Op.RESTART, Op.ADOPT})
"""Each of these ends when a task runs: whichever is open goes on, whatever began it."""

DURABLE = frozenset({Op.CLEANUP, Op.PRESERVE, Op.PURGE, Op.DISPOSE})
"""They end in a destructive step: their intent must be in the ledger, with a lease, before anything is touched."""

TRANSIENT_PHASE = {
    Op.START: Phase.CREATING,
    Op.RESTORE: Phase.RESTORING,
    Op.RESTART: Phase.CREATING,
    Op.ADOPT: Phase.CREATING,
    Op.STOP: Phase.STOPPING,
    Op.CLEANUP: Phase.STOPPING,
    Op.PRESERVE: Phase.PRESERVING,
    Op.DISPOSE: Phase.PRESERVING,
    Op.PURGE: Phase.PURGING,
}


_NAMESPACE = uuid.UUID("6f0f3a52-6a1c-5f3f-9d0a-5f6c2f6d7a11")


def operation_id(uid: Uid, numbered_from: float, n: int) -> OperationId:
    """The id of the `n`-th operation (from 1) of one life: the same after a crash, so a row sent twice is one row."""
    return OperationId(str(uuid.uuid5(_NAMESPACE, f"{uid}/{numbered_from!r}/{n}")))


def health_event_id(uid: Uid, numbered_from: float, n: int) -> str:
    """The id of the `n`-th health event (from 1) of one life; as `operation_id`."""
    return str(uuid.uuid5(_NAMESPACE, f"{uid}/{numbered_from!r}/health/{n}"))


def request_operation_id(uid: Uid, request: RequestId) -> OperationId:
    """The id of the operation that a request is answered with where nothing is to be done."""
    return OperationId(str(uuid.uuid5(_NAMESPACE, f"{uid}/request/{request}")))


def entry_operation_id(uid: Uid, sequence: int, sha256: str) -> OperationId:
    """The id of the operation that entered an archive into the catalogue again."""
    return OperationId(str(uuid.uuid5(_NAMESPACE, f"{uid}/archive/{sequence}/{sha256}")))


def later_archive_id(operation: OperationId, outdated: int) -> OperationId:
    """Under which id the catalogue has the archive that an operation makes after that one, whose layer was written since.
    The same after a crash."""
    return OperationId(str(uuid.uuid5(_NAMESPACE, f"{operation}/after/{outdated}")))


def correlation(world: World, source: Source, request: RequestId | None) -> str:
    """The id of what is behind an operation that begins now: the same for each operation that it brings about.

    A request has its own. A deletion, an edit of the spec, the end of a process and the end of its time are told by the
    life and what is known of each, so that a repetition after a crash has the same id.
    """
    if request is not None:
        return request
    record, desired = world.record, world.desired
    cause = f"vanished/{record.numbered_from!r}/{record.operations}"
    match desired:
        case Terminating():
            cause = "deletion"
        case Gone() if record.deletion_seen:
            cause = "deletion"
        case Wanted(runtime):
            cause = _cause(record, source, runtime.generation)
    return str(uuid.uuid5(_NAMESPACE, f"{world.ref.uid}/cause/{cause}"))


def _cause(record: Record, source: Source, generation: int) -> str:
    match source:
        case Source.KUBECTL | Source.ADMIN_CLI:
            return f"generation/{generation}"
        case Source.AUTO_TTL:
            return f"expired/{record.stopped_at!r}"
        case Source.NODE_EVENT | Source.AUTO_RECONCILE:
            # What runs since then has ended, or was found to be otherwise than it should be.
            return f"since/{record.started_at!r}" if record.started_at is not None else f"found/{record.operations}"


def answered(operation: OpenOperation, finish: Finish) -> AnsweredRequest | None:
    """The answer to the request that the operation was begun for, now that it ends like this."""
    if operation.request is None:
        return None
    code = Code.CONFLICT if finish.outcome is Outcome.SUPERSEDED else finish.code
    return AnsweredRequest(operation.request, finish.outcome, code, finish.message)


def opening(record: Record, op: Op, source: Source, request: RequestId | None = None) -> Begin | Finish | None:
    """What must be committed before steps of `op` run: its intent, or the end of another operation, or nothing."""
    current = record.operation
    if current is None:
        return Begin(op, source, op in DURABLE, record.phase, request)
    if current.op is op or (op in TOWARDS_RUNNING and current.op in TOWARDS_RUNNING):
        return None if current.committed else Begin(current.op, current.source, True, current.before)
    return Finish(Outcome.SUPERSEDED, TRANSIENT_PHASE[op], f"{op} was wanted before {current.op} was done")


def closing(record: Record, reached: Set[Op], after: Phase, message: str = "") -> Finish | None:
    """The end of the open operation, if there is one. `reached`: the operations whose end this is; any other one was
    given up on the way."""
    if record.operation is None:
        return None
    outcome = Outcome.SUCCESS if record.operation.op in reached else Outcome.SUPERSEDED
    return Finish(outcome, after, message)
