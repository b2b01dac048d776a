"""Which operation is open while steps run: an intent is committed before the first effect, and closed when its end is
observed. The planner calls these; the rows end in the ledger."""

from __future__ import annotations

import uuid
from collections.abc import Set

from perdure.api.names import OperationId, Uid
from perdure.api.phases import Phase
from perdure.api.request import RequestId
from perdure.plan.steps import Begin, Finish
from perdure.plan.world import AnsweredRequest, Code, Op, OpenOperation, Outcome, Record, Source

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
