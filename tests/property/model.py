"""A node on which every effect succeeds: what each step leaves behind, and what the next look then shows.

`effects` mirrors the executor's steps, journal writes included, `look` mirrors the observer. What the engine would refuse
is an assertion here: a plan that asks for it is wrong. Data is a token, its lineage, that travels with snapshots and
archives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

import msgspec

from perdure.api.names import NodeId, OperationId, RuntimeRef, SnapshotKey
from perdure.api.network import NetworkMode, network_mode
from perdure.api.runtime import (
    DeletionPolicy,
    DesiredState,
    Restore,
    RestorePolicy,
    Runtime,
    RuntimeSpec,
    RuntimeStatus,
)
from perdure.plan.certainty import Absent, Certain, Present, Unknown
from perdure.plan.health import NOTHING_PROBED, ProbeFacts
from perdure.plan.operations import answered, operation_id
from perdure.plan.ports import numbered_ports, numbers_of
from perdure.plan.steps import (
    AdoptSnapshot,
    Answer,
    ArchiveWorkspace,
    Begin,
    CloseForgotten,
    CreateContainer,
    CreateSandbox,
    Dispose,
    EnsureImage,
    Finish,
    Forget,
    Ground,
    KeepWorkspace,
    KillTask,
    LeadOutPorts,
    Note,
    PrepareWorkspace,
    PurgeArchives,
    ReapTask,
    RecordPutAway,
    RemoveContainer,
    RemoveSandbox,
    RemoveWorkspace,
    RepairNetwork,
    RestoreWorkspace,
    StartTask,
    Step,
    StopTask,
)
from perdure.plan.uptime import Uptime
from perdure.plan.world import (
    OWN_NAMESPACE,
    ArchiveFacts,
    ContainerFacts,
    Desired,
    Exit,
    Failure,
    Gone,
    HostPort,
    ImageFacts,
    LedgerFacts,
    Observed,
    Op,
    OpenOperation,
    Record,
    SandboxFacts,
    SnapshotFacts,
    StopAsked,
    TaskFacts,
    TaskState,
    Terminating,
    Unseen,
    Wanted,
    Workspace,
    World,
)

NOT_ASKED = Unknown("not asked: no decision depends on it now")
NOTHING = "nothing"
"""The lineage of a snapshot that waits for its restore."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    facts: SnapshotFacts
    lineage: str
    writes: int = 0
    """How often a task started on it, and wrote."""


@dataclass(frozen=True, slots=True)
class Archive:
    facts: ArchiveFacts
    lineage: str
    writes: int = 0
    operation: OperationId | None = None
    put_away: bool = False
    removing: bool = False


@dataclass(frozen=True, slots=True)
class Truth:
    """All that is, of one life and its identity, whether anybody looks or not."""

    ref: RuntimeRef
    node: NodeId
    desired: Desired
    registry: Mapping[str, ImageFacts]
    """What an image name leads to."""
    record: Record | None = None
    images: frozenset[str] = frozenset()
    """Names that are on the node."""
    snapshots: Mapping[SnapshotKey, Snapshot] = field(default_factory=dict)
    container: ContainerFacts | None = None
    task: TaskFacts | None = None
    sandbox: SandboxFacts | None = None
    archives: Mapping[int, Archive] = field(default_factory=dict)
    data_seen: SnapshotKey | None = None
    released: bool = False
    force_released: bool = False
    failure: Failure | None = None
    probes: ProbeFacts = NOTHING_PROBED
    """What the agent's prober has come to about the task; it forgets with the agent, and with the task."""
    deaf: bool = False
    """The main process ends by SIGKILL alone."""
    written: str | None = None
    """The lineage that a task of this life first ran on."""
    writes: int = 0
    """How often tasks of this life wrote to it."""

    @property
    def runtime(self) -> Runtime | None:
        return self.desired.runtime if isinstance(self.desired, Wanted | Terminating) else None

    def known(self) -> Record:
        return self.record or Record(ref=self.ref)

    def with_runtime(self, runtime: Runtime) -> Truth:
        kind = Terminating if runtime.terminating else Wanted
        return replace(self, desired=kind(runtime))


def publish(truth: Truth, status: RuntimeStatus) -> Truth:
    """The object as it is after its status was written."""
    runtime = truth.runtime
    return truth if runtime is None else truth.with_runtime(msgspec.structs.replace(runtime, status=status))


# ---------------------------------------------------------------------------------------------- looking


def look(truth: Truth, now: float) -> World | None:
    """What the observer would hand to the planner; None when this node has nothing to do with the life."""
    if truth.record is None and truth.runtime is None:
        return None
    record, desired = truth.known(), truth.desired
    unproven = isinstance(desired, Gone) and not desired.confirmed and not record.deletion_seen
    blind = isinstance(desired, Unseen) or unproven
    observed = Observed() if blind else _observe(truth, record)
    return World(truth.ref, desired, observed, record, truth.failure, uptime=Uptime("boot", now))


def _observe(truth: Truth, record: Record) -> Observed:
    of_interest = record.workspace.key if record.workspace is not None and isinstance(truth.desired, Wanted) else None
    snapshots = tuple(
        snapshot.facts for key, snapshot in truth.snapshots.items() if of_interest is None or key == of_interest
    )
    image, wanted_image = _images(truth, record)
    return Observed(
        container=Present(truth.container) if truth.container is not None else Absent(),
        task=Present(truth.task) if truth.task is not None else Absent(),
        snapshots=Present(snapshots),
        sandbox=Present(truth.sandbox) if truth.sandbox is not None else Absent(),
        image=image,
        wanted_image=wanted_image,
        ledger=_ledger(truth, record, snapshots),
        probes=truth.probes if runs(truth) else NOTHING_PROBED,
    )


def runs(truth: Truth) -> bool:
    """Whether the main process is alive."""
    return truth.task is not None and truth.task.state is TaskState.RUNNING


def _image(truth: Truth, name: str) -> Certain[ImageFacts]:
    return Present(truth.registry[name]) if name in truth.images else Absent()


def _images(truth: Truth, record: Record) -> tuple[Certain[ImageFacts], Certain[ImageFacts]]:
    runtime, workspace = truth.runtime, record.workspace
    if runtime is None:
        return NOT_ASKED, NOT_ASKED
    to_run = isinstance(truth.desired, Wanted) and runtime.spec.desired_state is DesiredState.RUNNING
    name = workspace.image if workspace is not None else runtime.spec.image
    if name != runtime.spec.image and to_run:
        return _image(truth, name), _image(truth, runtime.spec.image)
    healthy = runs(truth) and truth.container is not None
    due = (to_run and (not healthy or bool(record.health.ended_for))) or (not to_run and runs(truth))
    return (_image(truth, name) if due else NOT_ASKED), NOT_ASKED


def _ledger(truth: Truth, record: Record, snapshots: tuple[SnapshotFacts, ...]) -> Certain[LedgerFacts]:
    workspace, restore = record.workspace, Restore()
    match truth.desired:
        case Wanted(runtime):
            restore = runtime.spec.restore
            half_restored = any(snapshot.gate is not None for snapshot in snapshots)
            to_run = runtime.spec.desired_state is DesiredState.RUNNING
            lost = workspace is None and (to_run or record.phase is None or half_restored)
            due = lost or (workspace is not None and workspace.removal_announced)
        case Terminating(runtime):
            restore = runtime.spec.restore
            begun = record.operation is not None and record.operation.op is Op.PURGE
            purging = begun or runtime.spec.deletion_policy is DeletionPolicy.PURGE
            undecided = workspace is None or not workspace.prepared or workspace.removal_announced
            due = not record.released and (undecided or purging)
        case _:
            due = not record.released and not record.force_released
    return Present(ledger_facts(truth, restore)) if due else NOT_ASKED


def ledger_facts(truth: Truth, restore: Restore) -> LedgerFacts:
    archives = {number: archive.facts for number, archive in truth.archives.items()}
    named = restore.archive if restore.policy is RestorePolicy.ARCHIVE else None
    return LedgerFacts(
        data_seen=truth.data_seen,
        released=truth.released,
        force_released=truth.force_released,
        latest=archives[max(archives)] if archives else None,
        named=next((facts for facts in archives.values() if named is not None and facts.object_name == named), None),
        put_away=_put_away(truth),
        purgeable=tuple(archives),
    )


def _put_away(truth: Truth) -> ArchiveFacts | None:
    kept = (
        archive.facts
        for archive in truth.archives.values()
        if (archive.put_away or archive.removing) and archive.facts.snapshot_key == truth.data_seen
    )
    return next(kept, None)


# ---------------------------------------------------------------------------------------------- doing


def apply(step: Step, truth: Truth, now: float) -> Truth:
    """The whole effect of a step."""
    return effects(step, truth, now)[-1]


def effects(step: Step, truth: Truth, now: float) -> tuple[Truth, ...]:
    """What is there after each durable write of a step, in order: a kill leaves any of these behind."""
    record = truth.known()
    match step:
        case Begin():
            return _begin(step, truth, now)
        case Finish():
            return _finish(step, truth)
        case Note(noted):
            return (replace(truth, record=noted),)
        case Answer(answer):
            return (replace(truth, record=replace(record, last_request=answer)),)
        case CloseForgotten():
            return (truth,)
        case KeepWorkspace():
            return _keep_workspace(step, truth, record)
        case RecordPutAway():
            return _record_put_away(step, truth, record)
        case Forget() | Dispose():
            return (replace(truth, record=None),)
        case EnsureImage(image):
            return (replace(truth, images=truth.images | {image}),)
        case PrepareWorkspace():
            return _prepare(step, truth)
        case AdoptSnapshot():
            return (_adopt(step, truth),)
        case RestoreWorkspace():
            return _restore(step, truth)
        case CreateSandbox():
            return (replace(truth, sandbox=truth.sandbox or _empty_sandbox(truth)),)
        case LeadOutPorts(kept):
            return _lead_out(truth, kept)
        case RepairNetwork():
            return _attach(truth)
        case RemoveSandbox():
            return (replace(truth, sandbox=None),)
        case CreateContainer(_, _, mark):
            return (_create_container(truth, mark),)
        case StartTask():
            return _start(step, truth, now)
        case StopTask():
            return _stop(step, truth, now)
        case KillTask():
            asked = record.stop_asked
            assert truth.task is not None
            assert asked is not None, "nothing is killed that was not told to stop"
            assert asked.pid == truth.task.pid
            return (_ended(truth, Exit(137, now)),)
        case ReapTask():
            return _reap(step, truth, now)
        case RemoveContainer():
            assert truth.task is None, "the engine refuses to remove a container that has a task"
            return (replace(truth, container=None),)
        case ArchiveWorkspace():
            return _archive(truth)
        case RemoveWorkspace():
            return _remove_workspace(step, truth, record)
        case PurgeArchives():
            assert record.operation is not None
            assert record.operation.op is Op.PURGE
            return (replace(truth, archives={}),)
        case never:
            assert_never(never)


def _empty_sandbox(truth: Truth) -> SandboxFacts:
    assert truth.runtime is not None
    mode = network_mode(truth.runtime.spec.network, node_has_cni=True)
    return SandboxFacts("/run/netns/x", mode, attached=mode is NetworkMode.NONE)


def _lead_out(truth: Truth, kept: tuple[HostPort, ...]) -> tuple[Truth, ...]:
    assert truth.sandbox is not None
    assert truth.task is None
    assert set(kept) < set(truth.sandbox.ports), "nothing new is led in without a process"
    return (replace(truth, sandbox=replace(truth.sandbox, ports=kept)),)


def attached(truth: Truth) -> Truth:
    """The network as the spec asks for it, whole; of a runtime that asks for none: nothing."""
    assert truth.sandbox is not None
    assert truth.runtime is not None
    if truth.sandbox.mode is NetworkMode.NONE:
        return truth
    policy = truth.runtime.spec.network.policy or OWN_NAMESPACE
    whole = SandboxFacts("/run/netns/x", NetworkMode.CNI, True, ("10.0.0.2",), _ports(truth), policy)
    return replace(truth, sandbox=whole)


def _ports(truth: Truth) -> tuple[HostPort, ...]:
    assert truth.runtime is not None
    record = truth.known()
    return numbered_ports(truth.runtime, dict(record.host_ports) | numbers_of(truth.runtime, record))


def _attach(truth: Truth) -> tuple[Truth, ...]:
    """Numbers are journalled before they are served."""
    numbers = {port.name: port.host_port for port in _ports(truth)}
    journalled = replace(truth, record=replace(truth.known(), host_ports=tuple(sorted(numbers.items()))))
    return journalled, attached(journalled)


def _begin(step: Begin, truth: Truth, now: float) -> tuple[Truth, ...]:
    record = truth.known()
    operation = record.operation
    if operation is None:
        n = record.operations + 1
        since = record.numbered_from if record.operations else now
        identity = operation_id(truth.ref.uid, since, n)
        operation = OpenOperation(
            identity, step.op, step.source, now, step.before, committed=not step.durable, request=step.request
        )
        record = replace(record, operations=n, numbered_from=since, operation=operation)
    committed = replace(record, operation=replace(operation, committed=True))
    return replace(truth, record=record), replace(truth, record=committed)


def _finish(step: Finish, truth: Truth) -> tuple[Truth, ...]:
    record = truth.known()
    if record.operation is None:
        return (truth,)
    workspace = record.workspace
    key = workspace.key if workspace is not None and workspace.prepared else None
    told = replace(truth, data_seen=key or truth.data_seen, released=truth.released or step.release)
    closed = replace(
        record,
        operation=None,
        phase=step.after,
        released=record.released or step.release,
        last_request=answered(record.operation, step) or record.last_request,
    )
    ended = replace(told, record=closed)
    return (told, ended) if step.release else (ended,)


def _prepare(step: PrepareWorkspace, truth: Truth) -> tuple[Truth, ...]:
    record, image, gate = truth.known(), step.image, step.gate
    workspace = Workspace(step.key, step.n, image.name, image.digest, image.chain_id, gate=gate)
    planned = replace(record, newest_n=max(record.newest_n, step.n), workspace=workspace)
    sequence = gate.sequence if gate is not None else None
    facts = SnapshotFacts(step.key, step.n, image.chain_id, image.name, image.digest, sequence)
    made = Snapshot(facts, NOTHING if gate is not None else f"fresh:{step.key}")
    journalled = replace(truth, record=planned)
    there = replace(journalled, snapshots={**truth.snapshots, step.key: truth.snapshots.get(step.key, made)})
    return journalled, there, replace(there, record=replace(planned, workspace=replace(workspace, prepared=True)))


def _adopt(step: AdoptSnapshot, truth: Truth) -> Truth:
    found, record = step.snapshot, truth.known()
    workspace = Workspace(
        found.key,
        found.n,
        found.image,
        found.image_digest,
        found.chain_id,
        prepared=True,
        gate=step.gate,
        ever_started=step.gate is None,
        removal_announced=step.removal_announced,
    )
    return replace(truth, record=replace(record, newest_n=max(record.newest_n, found.n), workspace=workspace))


def _restore(step: RestoreWorkspace, truth: Truth) -> tuple[Truth, ...]:
    assert truth.task is None, "a layer is written only while no task is on it"
    record, snapshot = truth.known(), truth.snapshots[step.key]
    assert record.workspace is not None
    archive = truth.archives[step.archive.sequence]
    full = replace(snapshot, lineage=archive.lineage, writes=archive.writes)
    filled = _with_snapshot(truth, full)
    opened = _with_snapshot(filled, replace(full, facts=replace(snapshot.facts, gate=None)))
    name = step.archive.object_name or str(step.archive.sequence)
    restored = replace(record, workspace=replace(record.workspace, gate=None, restored_from=name), put_away=None)
    return filled, opened, replace(opened, record=restored)


def _with_snapshot(truth: Truth, snapshot: Snapshot) -> Truth:
    return replace(truth, snapshots={**truth.snapshots, snapshot.facts.key: snapshot})


def _create_container(truth: Truth, mark: str) -> Truth:
    workspace = truth.known().workspace
    assert workspace is not None
    assert truth.sandbox is not None, "a container joins a network namespace that is there"
    if truth.container is not None and truth.task is not None:
        assert truth.container.spec_hash == mark, "the engine changes no container that has a task"
        return truth
    return replace(truth, container=ContainerFacts(truth.ref.container_id, workspace.key, mark))


def _start(step: StartTask, truth: Truth, now: float) -> tuple[Truth, ...]:
    if step.refresh is not None:
        truth = _create_container(truth, step.spec_hash)
    record, snapshot = truth.known(), truth.snapshots[step.key]
    assert record.workspace is not None
    assert truth.container is not None
    assert truth.container.snapshot_key == step.key
    assert snapshot.facts.gate is None, "the engine starts nothing behind a shut gate"
    assert truth.task is None or truth.task.state is TaskState.CREATED, "the engine starts no second task"
    touched = replace(record, workspace=replace(record.workspace, ever_started=True, archived=None))
    journalled = replace(truth, record=touched)
    created = replace(journalled, task=TaskFacts(TaskState.CREATED, 42))
    published, with_network = _attach(created)
    running = started(with_network, step.key)
    noted = replace(
        running.known(),
        running=True,
        started_at=now,
        stopped_at=None,
        next_start_at=None,
        halted=None,
        stop_asked=None,
    )
    return journalled, created, published, running, replace(running, record=noted)


def started(truth: Truth, key: SnapshotKey) -> Truth:
    """A main process is alive on the snapshot and writes, whoever started it."""
    snapshot = truth.snapshots[key]
    wrote = _with_snapshot(truth, replace(snapshot, writes=snapshot.writes + 1))
    running = TaskFacts(TaskState.RUNNING, 42)
    alive = replace(wrote, task=running, probes=NOTHING_PROBED, deaf=False)
    return replace(alive, written=truth.written or snapshot.lineage, writes=snapshot.writes + 1)


def _stop(step: StopTask, truth: Truth, now: float) -> tuple[Truth, ...]:
    assert truth.task is not None
    assert truth.task.pid == step.pid
    if not truth.deaf:
        return (_ended(truth, Exit(143, now)),)
    return (replace(truth, record=replace(truth.known(), stop_asked=StopAsked(step.pid, Uptime("boot", now)))),)


def _ended(truth: Truth, exit_: Exit) -> Truth:
    assert truth.task is not None
    return replace(truth, task=replace(truth.task, state=TaskState.STOPPED, exit=exit_))


def _reap(step: ReapTask, truth: Truth, now: float) -> tuple[Truth, ...]:
    assert truth.task is None or truth.task.state is TaskState.STOPPED, "the engine refuses to delete a live task"
    ended_at = step.exit.at if step.exit is not None else now
    ended = replace(
        truth.known(),
        running=False,
        stopped_at=ended_at,
        stopped_up=Uptime("boot", now),
        last_exit=step.exit or Exit(None, ended_at),
        failures_in_row=step.failures_in_row,
        next_start_at=step.next_start_at,
        halted=step.halted,
        restarts=step.restarts,
        health=truth.known().health.of_next_task(),
        stop_asked=None,
    )
    journalled = replace(truth, record=ended)
    return journalled, replace(journalled, task=None)


def _archive(truth: Truth) -> tuple[Truth, ...]:
    record = truth.known()
    workspace, operation, runtime = record.workspace, record.operation, truth.ref
    assert workspace is not None
    assert operation is not None
    assert operation.committed
    assert truth.task is None, "a layer is read only while no task is on it"
    again = (number for number, archive in truth.archives.items() if archive.operation == operation.id)
    sequence = next(again, max(truth.archives, default=0) + 1)
    facts = archive_of(runtime, sequence, truth.node, workspace.key, truth.registry[workspace.image])
    snapshot = truth.snapshots[workspace.key]
    archive = Archive(facts, snapshot.lineage, snapshot.writes, operation.id)
    kept = replace(truth, archives={**truth.archives, sequence: archive})
    return kept, replace(kept, record=replace(record, workspace=replace(workspace, archived=facts)))


def _remove_workspace(step: RemoveWorkspace, truth: Truth, record: Record) -> tuple[Truth, ...]:
    """The executor's last look at the grounds, as assertions."""
    before: tuple[Truth, ...] = ()
    workspace, operation = record.workspace, record.operation
    assert operation is not None
    assert operation.committed
    assert truth.container is None, "the engine refuses to remove what a container refers to"
    match step.ground:
        case Ground.PURGE:
            assert operation.op is Op.PURGE
        case Ground.NEVER_STARTED:
            assert workspace is not None
            assert workspace.key == step.key
            assert not workspace.ever_started
        case Ground.ARCHIVED:
            assert workspace is not None
            assert workspace.archived is not None
            archive, snapshot = truth.archives[workspace.archived.sequence], truth.snapshots[step.key]
            assert (archive.lineage, archive.writes) == (snapshot.lineage, snapshot.writes)
            noted = replace(truth, record=replace(record, workspace=replace(workspace, removal_announced=True)))
            sequence = workspace.archived.sequence
            truth = replace(noted, archives={**truth.archives, sequence: replace(archive, removing=True)})
            before = (noted, truth)
    left = {key: found for key, found in truth.snapshots.items() if key != step.key}
    return (*before, replace(truth, snapshots=left))


def _keep_workspace(step: KeepWorkspace, truth: Truth, record: Record) -> tuple[Truth, ...]:
    assert record.workspace is not None
    assert record.workspace.key == step.key
    archives = {
        sequence: replace(archive, removing=archive.removing and archive.facts.snapshot_key != step.key)
        for sequence, archive in truth.archives.items()
    }
    told = replace(truth, archives=archives)
    return told, replace(told, record=replace(record, workspace=replace(record.workspace, removal_announced=False)))


def _record_put_away(step: RecordPutAway, truth: Truth, record: Record) -> tuple[Truth, ...]:
    assert record.workspace is not None
    assert record.workspace.archived == step.put_away.archive
    assert record.workspace.key not in truth.snapshots
    sequence = step.put_away.archive.sequence
    told = replace(truth, archives={**truth.archives, sequence: replace(truth.archives[sequence], put_away=True)})
    return told, replace(told, record=replace(record, workspace=None, put_away=step.put_away))


def archive_of(ref: RuntimeRef, sequence: int, node: NodeId, key: SnapshotKey, image: ImageFacts) -> ArchiveFacts:
    """A verified archive of a snapshot on this image."""
    return ArchiveFacts(
        sequence=sequence,
        kind=ref.kind,
        namespace=ref.namespace,
        name=ref.name,
        uid=ref.uid,
        store="default",
        node_id=node,
        snapshot_key=key,
        image=image.name,
        image_digest=image.digest,
        chain_id=image.chain_id,
        sha256="ee",
        bytes=10,
        entries=1,
        uncompressed_bytes=10,
        empty=False,
        object_name=f"{ref.kind.short}-{ref.name}-{sequence}",
    )


def wanted_lineage(truth: Truth, spec: RuntimeSpec, key: SnapshotKey) -> str | None:
    """What a first task of this life must find in its layer; None: the archive that was asked for is not there."""
    facts = ledger_facts(truth, spec.restore)
    match spec.restore.policy:
        case RestorePolicy.NONE:
            source = None
        case RestorePolicy.ARCHIVE:
            if facts.named is None:
                return None
            source = facts.named
        case RestorePolicy.LATEST:
            source = facts.latest
    return f"fresh:{key}" if source is None else truth.archives[source.sequence].lineage
