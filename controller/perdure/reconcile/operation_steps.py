"""Operations as rows: the intent before the first effect, the end after the last one was observed.

A row goes into the node journal, and from there to the ledger; of an operation that ends in a destructive step it is
committed in the ledger itself first, under the operation's lease.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import structlog

from perdure.api.names import RuntimeRef
from perdure.api.phases import Phase
from perdure.plan.operations import DURABLE, answered, operation_id, request_operation_id
from perdure.plan.steps import Answer, Begin, Finish
from perdure.plan.world import Op, OpenOperation, Record, Source, Terminating, Wanted, World
from perdure.reconcile.hands import REMOVE_SECONDS, Hands, Place
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
                id_, step.op, step.source, self._now(), step.before, committed=not step.durable, request=step.request
            )
            record = replace(record, operations=n, numbered_from=since, operation=operation)
        row = _intent(record, operation, _image_of(record, world))
        if step.durable:
            # The id is used up before the ledger hears of it: a crash in between can neither leave an intent that
            # nobody knows nor lend its id to another operation.
            await self._hands.journal.commit(put=record)
            await self._hands.outbox.flush()
            lease = await self._hands.leases.hold(ref.uid, REMOVE_SECONDS)
            await self._hands.ledger.begin(row, self._place.node_name, lease)
            await self._hands.journal.commit(put=replace(record, operation=replace(operation, committed=True)))
        else:
            await self._hands.journal.commit(put=record, rows=(row,))
            self._hands.outbox.poke()
        log.info("operation_started", runtime=str(ref), uid=ref.uid, op=step.op.value, source=step.source.value)

    async def finish(self, step: Finish, ref: RuntimeRef) -> None:
        record = self._hands.record(ref)
        operation = record.operation
        if operation is None:
            return
        workspace = record.workspace
        row = OperationFinished(
            id=operation.id,
            ref=ref,
            at=self._now(),
            outcome=step.outcome,
            after=step.after,
            error_code=step.code.value,
            message=step.message,
            snapshot_key=workspace.key if workspace and workspace.prepared else None,
            image=workspace.image if workspace else "",
            numbered_from=record.numbered_from,
            n=record.operations,
        )
        closed = replace(
            record,
            operation=None,
            phase=step.after,
            released=record.released or step.release,
            last_request=answered(operation, step) or record.last_request,
        )
        if step.release:
            lease = await self._hands.leases.hold(ref.uid, REMOVE_SECONDS)
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

    async def answer(self, step: Answer, world: World) -> None:
        """Both rows at once, under an id made from the request's: answered twice, it is one operation."""
        ref, answer, at = world.ref, step.answer, self._now()
        record = self._hands.record(ref, world.record)
        id_ = request_operation_id(ref.uid, answer.id)
        image = _image_of(record, world)
        started = OperationStarted(id_, ref, Op.CLEANUP, Source.ADMIN_CLI, at, record.phase, image)
        workspace = record.workspace
        finished = OperationFinished(
            id=id_,
            ref=ref,
            at=at,
            outcome=answer.outcome,
            after=record.phase or Phase.PENDING,
            error_code=answer.code.value,
            message=answer.message,
            snapshot_key=workspace.key if workspace and workspace.prepared else None,
            image=image,
            numbered_from=record.numbered_from,
            n=record.operations,
        )
        await self._hands.journal.commit(put=replace(record, last_request=answer), rows=(started, finished))
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


def _intent(record: Record, operation: OpenOperation, image: str) -> OperationStarted:
    return OperationStarted(
        operation.id, record.ref, operation.op, operation.source, operation.started_at, operation.before, image
    )


def _image_of(record: Record, world: World) -> str:
    if record.workspace is not None:
        return record.workspace.image
    match world.desired:
        case Wanted(runtime) | Terminating(runtime):
            return runtime.spec.image
        case _:
            return ""
