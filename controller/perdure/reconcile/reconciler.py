"""Observe, plan, do, observe again: one runtime at a time per worker, until there is nothing to do; then the status.

The reconciler is handed keys by the queue. Whatever goes wrong with one key ends as that key's failure and back-off:
no other runtime notices.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from perdure.api.conditions import Reason
from perdure.api.names import OperationId, RuntimeRef, Uid
from perdure.api.runtime import Runtime, RuntimeStatus
from perdure.plan.certainty import Unknown
from perdure.plan.failures import phase_told
from perdure.plan.operations import DURABLE
from perdure.plan.planner import plan
from perdure.plan.steps import Answer, Begin, Finish, Note, Plan, Step
from perdure.plan.world import Failure, Op, Outcome, Terminating, Wanted, World
from perdure.reconcile.asking import target_of
from perdure.reconcile.executor import Executor
from perdure.reconcile.observer import Observer
from perdure.reconcile.operation_rows import End, finished
from perdure.reconcile.outbox import Outbox
from perdure.reconcile.ports.cluster import Cluster, Objects
from perdure.reconcile.ports.errors import LeaseBusy, PortError, StatusConflict
from perdure.reconcile.ports.journal import Journal, OperationFailing
from perdure.reconcile.probe import Probe
from perdure.reconcile.prober import Prober
from perdure.reconcile.queue import KeyedQueue
from perdure.reconcile.retries import Retries

MAX_ROUNDS = 40
"""More rounds than the longest story has steps: reaching it means that two rules disagree."""
PUBLISH_AFTER_SECONDS = 0.5
"""A phase that is no end state is shown only if it lasts this long: it saves an API write per start."""
API_RETRY_SECONDS = 5.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Loop:
    """The parts that the reconciler drives."""

    observer: Observer
    executor: Executor
    queue: KeyedQueue[Uid]
    retries: Retries
    journal: Journal
    outbox: Outbox
    cluster: Cluster
    objects: Objects
    probe: Probe
    prober: Prober
    now: Callable[[], float]
    on_released: Callable[[Uid], None]
    """Called when the ledger has it that a life is over: in one process with the controller it need not wait for a watch."""


class Reconciler:
    """Handles one key at a time; many instances of `handle` run at once for different keys."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._told_why: dict[Uid, tuple[OperationId, Reason]] = {}
        """Of operations that go on until they succeed: why they do not, as the journal has it."""

    async def handle(self, uid: Uid) -> None:
        """Bring one runtime as far as it gets now. Raises only what is a defect."""
        loop, clock = self._loop, asyncio.get_running_loop()
        began = clock.time()
        outcome, failed = "healthy", None
        for _ in range(MAX_ROUNDS):
            world = await loop.observer.look(uid)
            self._follow(uid, world)
            if world is None:
                self._told_why.pop(uid, None)
                break
            plan_ = plan(world, loop.now())
            if failed is not None and plan_.steps:
                # What comes before the failure in the order of the rules waits as long as what failed.
                self._try_again_later(world)
                break
            error = await self._do(world, plan_) if plan_.steps else None
            if error is not None:
                failed, outcome = error, "waiting" if isinstance(error, LeaseBusy) else "failed"
            elif plan_.settled or not plan_.steps:
                await self._settle(world, plan_)
                if plan_.waiting is not None:
                    outcome = "waiting"
                break
        else:
            outcome = "unsettled"
            log.error("reconcile_does_not_settle", uid=uid, rounds=MAX_ROUNDS)
            loop.queue.add_in(uid, API_RETRY_SECONDS)
        loop.probe.reconciled(outcome, clock.time() - began)

    def _follow(self, uid: Uid, world: World | None) -> None:
        """Who is asked by probes from now on. While nobody knows what runs, what is asked stays as it is."""
        if world is None or not isinstance(world.observed.task, Unknown):
            self._loop.prober.follow(uid, target_of(world) if world is not None else None)

    # ------------------------------------------------------------------------------------------ doing

    async def _do(self, world: World, plan_: Plan) -> PortError | None:
        """Run the plan's steps; what went wrong, if anything did."""
        running = asyncio.ensure_future(self._run_steps(world, plan_))
        try:
            done, _ = await asyncio.wait({running}, timeout=PUBLISH_AFTER_SECONDS)
            if not done:
                await self._publish(world, plan_.status)
            failed = await running
        except asyncio.CancelledError:
            # Effects may be cut off anywhere, as by a kill; the next process observes and goes on.
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            raise
        if failed is None:
            return None
        await self._failed(world, *failed)
        return failed[1]

    async def _run_steps(self, world: World, plan_: Plan) -> tuple[Step, PortError] | None:
        first = [step for step in plan_.steps if isinstance(step, Begin | Note)]
        rest = [step for step in plan_.steps if not isinstance(step, Begin | Note)]
        for step in first:
            failure = await self._run_step(step, world)
            if failure is not None:
                return failure
        outcomes = await asyncio.gather(*(self._run_step(step, world) for step in rest))
        return next((outcome for outcome in outcomes if outcome is not None), None)

    async def _run_step(self, step: Step, world: World) -> tuple[Step, PortError] | None:
        clock = asyncio.get_running_loop()
        name = type(step).__name__
        began = clock.time()
        record = world.record
        try:
            await self._loop.executor.run(step, world)
        except PortError as error:
            busy = isinstance(error, LeaseBusy)
            self._loop.probe.stepped(name, "busy" if busy else "failed", clock.time() - began)
            return step, error
        seconds = clock.time() - began
        self._loop.probe.stepped(name, "done", seconds)
        log.debug("step_done", runtime=str(world.ref), uid=world.ref.uid, step=name, seconds=round(seconds, 4))
        if isinstance(step, Finish) and record.operation is not None:
            self._told_why.pop(world.ref.uid, None)
            self._loop.probe.finished(record.operation.op.value, step.outcome.value, step.code.value)
            if step.release:
                self._loop.on_released(world.ref.uid)
            self._announce(world, step, record.operation.op.value)
        if isinstance(step, Answer):
            self._loop.probe.finished(Op.CLEANUP.value, step.answer.outcome.value, step.answer.code.value)
        return None

    async def _failed(self, world: World, step: Step, error: PortError) -> None:
        """Remember the failure, close the operation that it ends, and let the next plan tell people."""
        loop, ref = self._loop, world.ref
        runtime = _runtime(world)
        generation = runtime.generation if runtime is not None else 0
        failure = loop.retries.failed(ref.uid, generation, type(step).__name__, error)
        tell, event = (log.info, "lease_busy") if isinstance(error, LeaseBusy) else (log.warning, "step_failed")
        tell(
            event,
            runtime=str(ref),
            uid=ref.uid,
            step=failure.step,
            reason=failure.reason.value,
            error=failure.message,
            retry_in=round(failure.retry_at - loop.now(), 2),
        )
        record = loop.journal.record(ref.uid)
        if record is None or record.operation is None:
            return
        operation = record.operation
        if operation.op in DURABLE:
            if operation.committed and not isinstance(error, LeaseBusy):
                await self._tell_why(operation.id, ref, failure)
            return
        after = phase_told(failure, record)
        end = End(loop.now(), Outcome.FAILURE, after, failure.reason.value, failure.message[:1024])
        row = finished(record, operation.id, end)
        try:
            await loop.journal.commit(put=replace(record, operation=None, phase=after), rows=(row,))
        except PortError as journal_error:
            log.error("journal_failed", uid=ref.uid, error=str(journal_error))
            return
        loop.outbox.poke()
        loop.probe.finished(operation.op.value, Outcome.FAILURE.value, error.reason.value)

    async def _tell_why(self, operation: OperationId, ref: RuntimeRef, failure: Failure) -> None:
        """In the ledger, too, once for each reason: the condition that shows it goes with the object."""
        if self._told_why.get(ref.uid) == (operation, failure.reason):
            return
        row = OperationFailing(operation, ref, self._loop.now(), failure.reason.value, failure.message[:1024])
        try:
            await self._loop.journal.commit(rows=(row,))
        except PortError as error:
            log.error("journal_failed", uid=ref.uid, error=str(error))
            return
        self._told_why[ref.uid] = operation, failure.reason
        self._loop.outbox.poke()

    def _try_again_later(self, world: World) -> None:
        runtime = _runtime(world)
        failure = self._loop.retries.failure(world.ref.uid, runtime.generation if runtime is not None else 0)
        delay = failure.retry_at - self._loop.now() if failure is not None else API_RETRY_SECONDS
        self._loop.queue.add_in(world.ref.uid, max(0.0, delay))

    # ------------------------------------------------------------------------------------------ telling

    async def _settle(self, world: World, plan_: Plan) -> None:
        uid = world.ref.uid
        if plan_.waiting is None:
            self._loop.retries.succeeded(uid)
        if plan_.wake_at is not None:
            self._loop.queue.add_in(uid, max(0.0, plan_.wake_at - self._loop.now()))
        await self._publish(world, plan_.status)

    async def _publish(self, world: World, status: RuntimeStatus | None) -> None:
        """One merge patch if anything changed. With the API away the wish goes on; the status follows later."""
        runtime = _runtime(world)
        if runtime is None or status is None:
            return
        uid = world.ref.uid
        newest = self._loop.objects.get(uid) or runtime
        try:
            self._loop.objects.learn(await self._loop.cluster.write_status(newest, status))
        except StatusConflict as error:
            log.debug("status_is_stale", uid=uid, error=str(error))
        except PortError as error:
            log.warning("status_not_written", runtime=str(world.ref), uid=uid, error=str(error))
            self._loop.queue.add_in(uid, API_RETRY_SECONDS)

    def _announce(self, world: World, step: Finish, op: str) -> None:
        runtime = _runtime(world)
        if runtime is None or step.outcome is not Outcome.SUCCESS:
            return
        message = f"{op}: {step.message}" if step.message else op
        emitting = asyncio.ensure_future(
            self._loop.cluster.emit(
                runtime, reason="".join(map(str.capitalize, op.split("_"))), message=message, warning=False
            )
        )
        _BACKGROUND.add(emitting)
        emitting.add_done_callback(_BACKGROUND.discard)


_BACKGROUND: set[asyncio.Future[None]] = set()
"""Keeps Events that are being sent from being collected."""


def _runtime(world: World) -> Runtime | None:
    return world.desired.runtime if isinstance(world.desired, Wanted | Terminating) else None
