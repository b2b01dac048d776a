"""Carries out steps through the ports: the journal first, then the effect, in an order that any crash leaves resumable.

Called by the reconciler with one plan at a time. Each step may run again after a crash; none trusts that an earlier one
happened. Raises `PortError` when a step could not be done; nothing is undone, the next look finds where things stand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import assert_never

import structlog

from perdure.api.conditions import Reason
from perdure.api.names import InstallationId, NodeId, NodeName, RuntimeRef
from perdure.api.runtime import Runtime
from perdure.plan.certainty import Present
from perdure.plan.operations import operation_id
from perdure.plan.steps import (
    AdoptSnapshot,
    ArchiveWorkspace,
    Begin,
    CreateContainer,
    CreateSandbox,
    EnsureImage,
    Finish,
    Forget,
    Ground,
    Note,
    PrepareWorkspace,
    PurgeArchives,
    ReapTask,
    RemoveContainer,
    RemoveSandbox,
    RemoveWorkspace,
    RestoreWorkspace,
    StartTask,
    Step,
    StopTask,
)
from perdure.plan.world import (
    ArchiveFacts,
    Exit,
    ImageFacts,
    OpenOperation,
    Record,
    Terminating,
    Wanted,
    Workspace,
    World,
)
from perdure.reconcile.environment import resolve
from perdure.reconcile.leases import LeaseKeeper
from perdure.reconcile.outbox import Outbox
from perdure.reconcile.ports import (
    AgentLedger,
    ArchiveCorrupt,
    ArchiveRequest,
    Archives,
    Cluster,
    ContainerPlan,
    Engine,
    EngineRefused,
    Journal,
    OperationFinished,
    OperationStarted,
    PortError,
    Sandbox,
    SourceError,
)
from perdure.reconcile.probe import Probe

KILL_WAIT_SECONDS = 10.0
"""How long SIGKILL may take: a process in uninterruptible sleep must not hang the agent."""
REMOVE_SECONDS = 10.0
"""Deadline of one destructive effect."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where this executor works."""

    installation: InstallationId
    node_name: NodeName
    node_id: NodeId


@dataclass(frozen=True, slots=True)
class Hands:
    """The ports that it works through."""

    engine: Engine
    sandbox: Sandbox
    archives: Archives
    journal: Journal
    ledger: AgentLedger
    cluster: Cluster
    leases: LeaseKeeper
    outbox: Outbox
    probe: Probe


class Executor:
    """One per agent. `starts` bounds how many tasks are started at once: more only makes each of them slower."""

    def __init__(self, hands: Hands, place: Place, *, now: Callable[[], float], concurrent_starts: int) -> None:
        self._hands = hands
        self._place = place
        self._now = now
        self._starts = asyncio.Semaphore(concurrent_starts)
        self._verified_here: set[int] = set()
        """Archives that this very process wrote and verified; others are verified again before data is removed."""

    async def run(self, step: Step, world: World) -> None:
        """Do one step. Raises `PortError`."""
        ref = world.ref
        match step:
            case Begin():
                await self._begin(step, world)
            case Finish():
                await self._finish(step, ref)
            case Note(record, why):
                log.debug("noted", runtime=str(ref), uid=ref.uid, why=why)
                await self._hands.journal.commit(put=record)
            case Forget():
                await self._hands.engine.forget(ref)
                await self._hands.journal.commit(forget=ref.uid)
            case EnsureImage(image, policy):
                await self._hands.engine.ensure_image(image, policy)
            case PrepareWorkspace():
                await self._prepare(step, ref)
            case AdoptSnapshot():
                await self._adopt(step, ref)
            case RestoreWorkspace():
                await self._restore(step, ref)
            case CreateSandbox():
                await self._hands.sandbox.create(ref, _live(world).spec)
            case RemoveSandbox():
                await self._hands.sandbox.remove(ref)
            case CreateContainer(_, image, mark):
                await self._create_container(world, image, mark)
            case StartTask():
                await self._start(step, world)
            case StopTask():
                await self._stop(step, ref)
            case ReapTask():
                await self._reap(step, ref)
            case RemoveContainer(container):
                await self._hands.engine.remove_container(container)
            case ArchiveWorkspace():
                await self._archive(ref)
            case RemoveWorkspace():
                await self._remove_workspace(step, ref)
            case PurgeArchives():
                await self._purge_archives(ref)
            case never:
                assert_never(never)

    # ------------------------------------------------------------------------------------------ operations

    async def _begin(self, step: Begin, world: World) -> None:
        ref = world.ref
        record = self._record(ref, default=world.record)
        n = record.operations + 1
        operation = OpenOperation(operation_id(ref.uid, n), step.op, step.source, self._now(), step.before)
        image = record.workspace.image if record.workspace else _image_of(world)
        row = OperationStarted(operation.id, ref, step.op, step.source, operation.started_at, step.before, image)
        begun = replace(record, operations=n, operation=operation)
        if step.durable:
            await self._hands.outbox.flush()
            lease = await self._hands.leases.hold(ref.uid, REMOVE_SECONDS)
            await self._hands.ledger.begin(row, self._place.node_name, lease)
            await self._hands.journal.commit(put=begun)
        else:
            await self._hands.journal.commit(put=begun, rows=(row,))
            self._hands.outbox.poke()
        log.info("operation_started", runtime=str(ref), uid=ref.uid, op=step.op.value, source=step.source.value)

    async def _finish(self, step: Finish, ref: RuntimeRef) -> None:
        record = self._record(ref)
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
            message=step.message,
            snapshot_key=workspace.key if workspace else None,
            image=workspace.image if workspace else "",
        )
        closed = replace(record, operation=None, phase=step.after, released=record.released or step.release)
        if step.release:
            lease = await self._hands.leases.hold(ref.uid, REMOVE_SECONDS)
            await self._hands.ledger.finish(row, self._place.node_name, lease, release=True)
            await self._hands.journal.commit(put=closed)
            await self._hands.leases.release(ref.uid)
        else:
            await self._hands.journal.commit(put=closed, rows=(row,))
            self._hands.outbox.poke()
        log.info(
            "operation_finished",
            runtime=str(ref),
            uid=ref.uid,
            op=operation.op.value,
            outcome=step.outcome.value,
            phase=step.after.value,
            message=step.message,
        )

    # ------------------------------------------------------------------------------------------ data

    async def _prepare(self, step: PrepareWorkspace, ref: RuntimeRef) -> None:
        """Journal, then snapshot, then journal that it is there: the label and the record never disagree for long, and
        a snapshot without a record carries all that a record needs."""
        record = self._record(ref)
        workspace = Workspace(
            key=step.key,
            n=step.n,
            image=step.image.name,
            image_digest=step.image.digest,
            chain_id=step.image.chain_id,
            gate=step.gate,
        )
        planned = replace(record, newest_n=max(record.newest_n, step.n), workspace=workspace)
        await self._hands.journal.commit(put=planned)
        await self._hands.engine.prepare_workspace(ref, workspace)
        await self._hands.journal.commit(put=replace(planned, workspace=replace(workspace, prepared=True)))

    async def _adopt(self, step: AdoptSnapshot, ref: RuntimeRef) -> None:
        snapshot = step.snapshot
        workspace = Workspace(
            key=snapshot.key,
            n=snapshot.n,
            image=snapshot.image,
            image_digest=snapshot.image_digest,
            chain_id=snapshot.chain_id,
            prepared=True,
            gate=step.gate,
            # Nobody remembers whether a task ran on it: it is treated as holding data.
            ever_started=step.gate is None,
        )
        record = self._record(ref)
        await self._hands.journal.commit(
            put=replace(record, newest_n=max(record.newest_n, snapshot.n), workspace=workspace)
        )
        log.info("snapshot_adopted", runtime=str(ref), uid=ref.uid, snapshot=snapshot.key)

    async def _restore(self, step: RestoreWorkspace, ref: RuntimeRef) -> None:
        """The gate's label goes first and its record last: a crash between them restores again, and starts nothing."""
        layer = await self._hands.engine.layer(step.key)
        try:
            began = asyncio.get_running_loop().time()
            await self._hands.archives.restore(step.archive, layer)
            self._hands.probe.archived("restore", step.archive.bytes, asyncio.get_running_loop().time() - began)
        except ArchiveCorrupt as error:
            await self._hands.ledger.quarantine(step.archive.sequence, str(error))
            raise
        await self._hands.engine.open_gate(step.key)
        record = self._record(ref)
        workspace = _workspace(record)
        name = step.archive.object_name or str(step.archive.sequence)
        await self._hands.journal.commit(
            put=replace(record, workspace=replace(workspace, gate=None, restored_from=name))
        )
        log.info("restored", runtime=str(ref), uid=ref.uid, archive=step.archive.sequence)

    async def _archive(self, ref: RuntimeRef) -> None:
        record = self._record(ref)
        workspace, operation = _workspace(record), record.operation
        if operation is None:
            raise PortError(f"no operation is open to archive {workspace.key} under", reason=Reason.INTERNAL_ERROR)
        async with self._hands.leases.kept(ref.uid) as lease:
            layer = await self._hands.engine.layer(workspace.key)
            sequence = await self._hands.ledger.begin_archive(operation.id, ref, workspace, self._place.node_id, lease)
            request = ArchiveRequest(self._place.installation, ref, sequence, self._place.node_id, workspace)
            began = asyncio.get_running_loop().time()
            facts = await self._hands.archives.export(request, layer)
            self._hands.probe.archived("export", facts.bytes, asyncio.get_running_loop().time() - began)
            lease = await self._hands.leases.hold(ref.uid, REMOVE_SECONDS)
            await self._hands.ledger.finish_archive(facts, lease)
        self._verified_here.add(facts.sequence)
        record = self._record(ref)
        await self._hands.journal.commit(put=replace(record, workspace=replace(_workspace(record), archived=facts)))
        log.info("archived", runtime=str(ref), uid=ref.uid, archive=facts.sequence, bytes=facts.bytes)

    async def _remove_workspace(self, step: RemoveWorkspace, ref: RuntimeRef) -> None:
        """The one place where a snapshot goes: every ground is checked again here, against the journal and the store."""
        record = self._record(ref)
        await self._check_ground(step, record)
        await self._hands.leases.hold(ref.uid, REMOVE_SECONDS)
        await self._hands.engine.remove_workspace(step.key)
        log.info("snapshot_removed", runtime=str(ref), uid=ref.uid, snapshot=step.key, ground=step.ground.value)

    async def _check_ground(self, step: RemoveWorkspace, record: Record) -> None:
        workspace, operation = record.workspace, record.operation
        if operation is None:
            raise _no_ground(step, "no operation is open")
        own = workspace is not None and workspace.key == step.key
        match step.ground:
            case Ground.PURGE:
                return
            case Ground.NEVER_STARTED:
                if own and workspace is not None and workspace.ever_started:
                    raise _no_ground(step, "a task ran on it")
            case Ground.ARCHIVED:
                archived = workspace.archived if own and workspace is not None else None
                if archived is None or archived.snapshot_key != step.key:
                    raise _no_ground(step, "no archive of it is on record")
                await self._verify(archived)

    async def _verify(self, archive: ArchiveFacts) -> None:
        if archive.sequence in self._verified_here:
            return
        await self._hands.archives.verify(archive)
        self._verified_here.add(archive.sequence)

    async def _purge_archives(self, ref: RuntimeRef) -> None:
        """Delete what is here, leave what is elsewhere to its node, and prove by listing that nothing is left here."""
        archives = self._hands.archives
        kept = {facts.sequence for facts in await self._hands.ledger.archives(ref.identity, None) if facts.retain}
        for facts in await self._hands.ledger.purgeable(ref.identity):
            lease = await self._hands.leases.hold(ref.uid, REMOVE_SECONDS)
            await self._hands.ledger.mark_purging(facts.sequence, lease)
            if facts.node_id in (None, self._place.node_id):
                await archives.delete(facts)
                await self._hands.ledger.mark_purged(facts.sequence)
        left = set(await archives.list(self._place.installation, ref)) - kept
        if left:
            raise PortError(
                f"purging the archives of {ref}: {sorted(left)} are still in the store and not in the catalogue; "
                "look at them, and remove them by hand if they are not wanted",
                reason=Reason.PURGE_FAILED,
                blocks_data=True,
            )
        elsewhere = await self._hands.ledger.purgeable(ref.identity)
        if elsewhere:
            raise PortError(
                f"purging the archives of {ref}: {len(elsewhere)} are on other nodes, whose agents delete them",
                reason=Reason.PURGE_FAILED,
            )

    # ------------------------------------------------------------------------------------------ container and task

    async def _create_container(self, world: World, image: ImageFacts, mark: str) -> None:
        runtime = _live(world)
        record = self._record(world.ref)
        env, namespace, sandbox = await asyncio.gather(
            resolve(runtime, self._hands.cluster),
            self._hands.cluster.namespace(world.ref.namespace),
            self._hands.sandbox.observe(world.ref),
        )
        if not isinstance(sandbox, Present):
            raise PortError(f"the network namespace of {world.ref} is not there", reason=Reason.NETWORK_FAILED)
        if namespace.uid != world.ref.namespace_uid:
            raise SourceError(
                f"namespace {world.ref.namespace} was created anew since {world.ref} was bound",
                reason=Reason.NAMESPACE_UNREADABLE,
            )
        await self._hands.engine.create_container(
            ContainerPlan(
                ref=world.ref,
                id=world.ref.container_id,
                key=_workspace(record).key,
                image=image,
                spec=runtime.spec,
                spec_hash=mark,
                env=env,
                netns=sandbox.it.netns,
                restricted=namespace.enforce == "restricted",
            )
        )

    async def _start(self, step: StartTask, world: World) -> None:
        """That a task was started is journalled before it is: from then on the layer counts as holding data, and an
        archive of it as out of date."""
        ref = world.ref
        if step.refresh is not None:
            await self._create_container(world, step.refresh, step.spec_hash)
        record = self._record(ref)
        workspace = _workspace(record)
        if not workspace.ever_started or workspace.archived is not None:
            record = replace(record, workspace=replace(workspace, ever_started=True, archived=None))
            await self._hands.journal.commit(put=record)
        async with self._starts:
            await self._hands.engine.start_task(step.container, step.key)
        await self._hands.journal.commit(
            put=replace(record, running=True, started_at=self._now(), stopped_at=None, next_start_at=None, halted=None)
        )

    async def _stop(self, step: StopTask, ref: RuntimeRef) -> None:
        engine = self._hands.engine
        if step.preflight is not None:
            await self._hands.archives.preflight(await engine.usage(step.preflight))
        await engine.signal_task(step.container, step.signal)
        if await engine.wait_task(step.container, step.grace_seconds):
            return
        log.info("stop_grace_over", runtime=str(ref), uid=ref.uid, grace_seconds=step.grace_seconds)
        await engine.signal_task(step.container, "SIGKILL")
        if not await engine.wait_task(step.container, KILL_WAIT_SECONDS):
            raise EngineRefused(
                f"the main process of {ref} is still there {KILL_WAIT_SECONDS:.0f} s after SIGKILL: it hangs in the kernel "
                "(a dead disk or network file system). It is tried again",
                reason=Reason.STOP_TIMED_OUT,
            )

    async def _reap(self, step: ReapTask, ref: RuntimeRef) -> None:
        """How it ended is journalled before the engine forgets it."""
        record = self._record(ref)
        ended_at = step.exit.at if step.exit is not None else self._now()
        await self._hands.journal.commit(
            put=replace(
                record,
                running=False,
                stopped_at=ended_at,
                last_exit=step.exit or Exit(None, ended_at),
                failures_in_row=step.failures_in_row,
                next_start_at=step.next_start_at,
                halted=step.halted,
                restarts=step.restarts,
            )
        )
        await self._hands.engine.delete_task(step.container)
        log.info(
            "main_process_ended",
            runtime=str(ref),
            uid=ref.uid,
            code=step.exit.code if step.exit else None,
            oom=step.exit.oom if step.exit else False,
            restarts=step.restarts,
        )

    # ------------------------------------------------------------------------------------------ the record

    def _record(self, ref: RuntimeRef, default: Record | None = None) -> Record:
        record = self._hands.journal.record(ref.uid)
        return record or default or Record(ref=ref)


def _workspace(record: Record) -> Workspace:
    if record.workspace is None:
        raise PortError(f"{record.ref} has no workspace on record", reason=Reason.INTERNAL_ERROR)
    return record.workspace


def _live(world: World) -> Runtime:
    match world.desired:
        case Wanted(runtime) | Terminating(runtime):
            return runtime
        case _:
            raise PortError(f"{world.ref} has no object to take a spec from", reason=Reason.INTERNAL_ERROR)


def _image_of(world: World) -> str:
    match world.desired:
        case Wanted(runtime) | Terminating(runtime):
            return runtime.spec.image
        case _:
            return ""


def _no_ground(step: RemoveWorkspace, why: str) -> PortError:
    return PortError(
        f"snapshot {step.key} is not removed on the ground {step.ground.value}: {why}",
        reason=Reason.INTERNAL_ERROR,
        blocks_data=True,
    )
