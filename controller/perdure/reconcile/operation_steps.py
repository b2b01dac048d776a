"""Operations as rows: the intent before the first effect, the end after the last one was observed.

A row goes into the node journal, and from there to the ledger; of an operation that ends in a destructive step it is
committed in the ledger itself first, under the operation's lease.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import structlog

from perdure.api.conditions import Reason
from perdure.api.names import RuntimeRef
from perdure.api.phases import Phase
from perdure.plan.operations import DURABLE, answered, correlation, operation_id, request_operation_id
from perdure.plan.steps import Answer, Begin, CloseForgotten, Dispose, Finish, Note
from perdure.plan.world import Code, Op, OpenOperation, Outcome, Record, Source, Terminating, Wanted, World
from perdure.reconcile.hands import Hands, Place
from perdure.reconcile.health_rows import tell, told
from perdure.reconcile.operation_rows import End, finished
from perdure.reconcile.ports.errors import LeaseBusy
from perdure.reconcile.ports.journal import OperationFinished, OperationStarted

log = structlog.get_logger(__name__)


class OperationSteps:
    """`now`: seconds since the epoch."""

    def __init__(self, hands: Hands, place: Place, now: Callable[[], float]) -> None:
        self._hands = hands
        self._place = place
        self._now = now

    async def begin(self, step: Begin, world: World) -> None:
        ref = world.ref
        record = self._hands.record(ref, world.record)
        operation = record.operation
        if operation is None:
            n = record.operations + 1
            since = record.numbered_from if record.operations else self._now()
            id_ = operation_id(ref.uid, since, n)
            operation = OpenOperation(
                id_,
                step.op,
                step.source,
                self._now(),
                step.before,
                committed=not step.durable,
                request=step.request,
                correlation=correlation(world, step.source, step.request),
            )
            record = replace(record, operations=n, numbered_from=since, operation=operation)
        row = _intent(record, operation, _image_of(record, world))
        if step.durable:
            # The id is used up before the ledger hears of it: a crash in between can neither leave an intent that
            # nobody knows nor lend its id to another operation.
            await self._hands.journal.commit(put=record)
            await self._hands.outbox.flush()
            try:
                lease = await self._hands.leases.hold(ref.uid)
            except LeaseBusy as busy:
                if operation.op is not Op.CLEANUP:
                    raise
                await self._give_way(record, busy, world)
                return
            await self._hands.ledger.begin(row, self._place.node_name, lease)
            await self._hands.journal.commit(put=replace(record, operation=replace(operation, committed=True)))
        else:
            await self._hands.journal.commit(put=record, rows=(row,))
            self._hands.outbox.poke()
        log.info("operation_started", runtime=str(ref), uid=ref.uid, op=step.op.value, source=step.source.value)

    async def _give_way(self, record: Record, busy: LeaseBusy, world: World) -> None:
        """Nothing was touched: a person is told so, and a sweep comes again. Raises `busy` for a sweep."""
        operation, known = record.operation, world.record.operation
        if operation is None:
            raise busy
        before = operation.before or Phase.STOPPED
        if operation.request is not None:
            outcome, code = Outcome.FAILURE, Code.CONFLICT
            message = f"{busy.holder} is at work on it; ask again when that is over"
        else:
            outcome, code, message = Outcome.SUPERSEDED, Code.SKIPPED_BUSY, f"{busy.holder} is at work on it"
        self._hands.probe.finished(operation.op.value, outcome.value, code.value)
        if known is None and operation.request is None and _was_busy(world):
            # The history tells it already; nobody else has heard of this operation.
            await self._hands.journal.commit(put=replace(record, operation=None))
        else:
            await self.finish(Finish(outcome, before, message, code=code), record.ref)
        if operation.request is None:
            raise busy

    async def finish(self, step: Finish, ref: RuntimeRef) -> None:
        record = self._hands.record(ref)
        operation = record.operation
        if operation is None:
            return
        row = finished(record, operation.id, End(self._now(), step.outcome, step.after, step.code.value, step.message))
        closed = replace(
            record,
            operation=None,
            phase=step.after,
            released=record.released or step.release,
            last_request=answered(operation, step) or record.last_request,
        )
        if step.release:
            lease = await self._hands.leases.hold(ref.uid)
            await self._hands.ledger.finish(row, self._place.node_name, lease, release=True)
            await self._hands.journal.commit(put=closed)
            await self._hands.leases.release(ref.uid)
        else:
            intent = () if operation.committed else (_intent(record, operation, row.image),)
            await self._hands.journal.commit(put=closed, rows=(*intent, row))
            self._hands.outbox.poke()
            if operation.op in DURABLE:
                await self._hands.leases.release(ref.uid)
        log.info(
            "operation_finished",
            runtime=str(ref),
            uid=ref.uid,
            op=operation.op.value,
            outcome=step.outcome.value,
            phase=step.after.value,
            message=step.message,
        )

    async def close_forgotten(self, step: CloseForgotten, ref: RuntimeRef) -> None:
        """Whoever finished one meanwhile is right: an operation is finished once."""
        at, message = self._now(), "the node's journal was lost while it was under way"
        rows = [
            OperationFinished(id_, ref, at, Outcome.SUPERSEDED, step.after, message=message) for id_ in step.operations
        ]
        await self._hands.journal.commit(rows=rows)
        self._hands.outbox.poke()
        await self._hands.outbox.flush()
        log.info("forgotten_operations_closed", runtime=str(ref), uid=ref.uid, count=len(rows))

    async def dispose(self, step: Dispose, world: World) -> None:
        """The record goes in the same instant as the rows that tell of it come."""
        ref, at = world.ref, self._now()
        record = self._hands.record(ref, world.record)
        since = record.numbered_from if record.operations else at
        id_ = operation_id(ref.uid, since, record.operations + 1)
        before = record.phase
        source, image = Source.AUTO_RECONCILE, _image_of(record, world)
        started = OperationStarted(
            id_, ref, Op.DISPOSE, source, at, before, image, correlation(world, source, request=None)
        )
        disposed = OperationFinished(
            id_,
            ref,
            at,
            Outcome.SUCCESS,
            before or Phase.REMOVED,
            message=step.message,
            numbered_from=since,
            n=record.operations + 1,
        )
        await self._hands.journal.commit(forget=ref.uid, rows=(started, disposed))
        self._hands.outbox.poke()
        log.info("record_disposed", runtime=str(ref), uid=ref.uid, message=step.message)

    async def note(self, step: Note, ref: RuntimeRef) -> None:
        record, rows = told(step.record, step.events, self._now())
        await self._hands.journal.commit(put=record, rows=rows)
        tell(self._hands, rows)
        log.debug("noted", runtime=str(ref), uid=ref.uid, why=step.why)

    async def answer(self, step: Answer, world: World) -> None:
        """Both rows at once, under an id made from the request's: answered twice, it is one operation."""
        ref, answer, at = world.ref, step.answer, self._now()
        record = self._hands.record(ref, world.record)
        id_ = request_operation_id(ref.uid, answer.id)
        image = _image_of(record, world)
        started = OperationStarted(id_, ref, Op.CLEANUP, Source.ADMIN_CLI, at, record.phase, image, answer.id)
        end = End(at, answer.outcome, record.phase or Phase.PENDING, answer.code.value, answer.message)
        rows = (started, finished(record, id_, end, image))
        await self._hands.journal.commit(put=replace(record, last_request=answer), rows=rows)
        self._hands.outbox.poke()
        log.info(
            "request_answered",
            runtime=str(ref),
            uid=ref.uid,
            request=answer.id,
            outcome=answer.outcome.value,
            code=answer.code.value,
            message=answer.message,
        )


def _was_busy(world: World) -> bool:
    """Whether the last attempt ended so, too."""
    return world.failure is not None and (world.failure.step, world.failure.reason) == ("Begin", Reason.IN_PROGRESS)


def _intent(record: Record, operation: OpenOperation, image: str) -> OperationStarted:
    return OperationStarted(
        operation.id,
        record.ref,
        operation.op,
        operation.source,
        operation.started_at,
        operation.before,
        image,
        operation.correlation,
    )


def _image_of(record: Record, world: World) -> str:
    if record.workspace is not None:
        return record.workspace.image
    match world.desired:
        case Wanted(runtime) | Terminating(runtime):
            return runtime.spec.image
        case _:
            return ""
