"""The status that people see, derived from the record and one look: phase, conditions, and the facts beside them.

The planner calls it for every plan that has somebody to show something to. It never reads the status that was written
before; transition times are put in by the writer, which knows what was there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from perdure.api.archive import object_name
from perdure.api.conditions import ConditionType, Reason, Truth
from perdure.api.network import NetworkMode
from perdure.api.phases import Phase
from perdure.api.runtime import Condition, LastExit, RequestStatus, Runtime, RuntimeStatus
from perdure.plan.certainty import Present, Unknown
from perdure.plan.operations import operation_id
from perdure.plan.ports import shown_ports
from perdure.plan.world import ArchiveFacts, Exit, Record, TaskState, World


def stamp(at: float | None) -> str | None:
    """RFC 3339 in UTC, whole seconds; None stays None."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def archive_name(archive: ArchiveFacts) -> str:
    """The RuntimeArchive object that stands for this archive."""
    return archive.object_name or object_name(archive.kind, archive.name, archive.sequence)


def last_exit(exit_: Exit | None) -> LastExit | None:
    """Exit codes above 128 are a shell's and runc's way to tell a signal."""
    if exit_ is None:
        return None
    code = exit_.code
    if exit_.oom:
        reason = "OOMKilled"
    elif exit_.unhealthy:
        reason = "Unhealthy"
    elif code is None:
        reason = "Unknown"
    else:
        reason = "Completed" if code == 0 else "Error"
    signal = code - 128 if code is not None and 128 < code < 128 + 65 else None
    return LastExit(code=code, signal=signal, reason=reason, at=stamp(exit_.at) or "")


@dataclass(slots=True)
class StatusDraft:
    """Collects conditions; `build` makes the status. One per plan, never shared."""

    world: World
    runtime: Runtime
    _conditions: dict[ConditionType, Condition] = field(default_factory=dict)
    expires_at: float | None = None
    """When what is stopped is cleaned up."""

    def set(self, type_: ConditionType, truth: Truth, reason: Reason, message: str = "") -> None:
        """Set one condition; a later call for the same type wins."""
        self._conditions[type_] = Condition(
            type=type_.value,
            status=truth.value,
            reason=reason.value,
            message=message[:1024],
            observed_generation=self.runtime.generation,
        )

    def build(self, phase: Phase) -> RuntimeStatus:
        """The status for `phase`, with the conditions set so far and those that follow from the record."""
        self._fill()
        record, workspace = self.world.record, self.world.record.workspace
        archived = _archive_of(record)
        seen = self.world.observed.sandbox
        sandbox = seen.it if isinstance(seen, Present) else None
        address = sandbox.addresses[0] if sandbox is not None and sandbox.addresses and is_running(self.world) else None
        return RuntimeStatus(
            phase=phase.value,
            observed_generation=self.runtime.generation,
            conditions=tuple(self._conditions[t] for t in ConditionType if t in self._conditions),
            node_name=self.runtime.node_name,
            node_id=self.runtime.node_id,
            container_id=self.world.ref.container_id if isinstance(self.world.observed.container, Present) else None,
            snapshot_key=workspace.key if workspace and workspace.prepared else None,
            image_digest=workspace.image_digest if workspace else None,
            address=address,
            ports=shown_ports(self.runtime, sandbox) if sandbox is not None else (),
            started_at=stamp(record.started_at),
            stopped_at=None if record.running else stamp(record.stopped_at),
            expires_at=stamp(self.expires_at),
            restarts=record.restarts,
            last_exit=last_exit(record.last_exit),
            restored_from=workspace.restored_from if workspace else None,
            last_archive=archive_name(archived) if archived else None,
            last_operation=_last_operation(record),
            last_request=_last_request(record) or self.runtime.status.last_request,
        )

    def _fill(self) -> None:
        self.default(ConditionType.SCHEDULED, Truth.TRUE, Reason.BOUND, f"bound to node {self.runtime.node_name}")
        workspace = self.world.record.workspace
        if workspace is not None:
            self.default(ConditionType.IMAGE_READY, Truth.TRUE, Reason.PRESENT, workspace.image)
        if workspace is not None and workspace.gate is not None:
            pending = f"archive {archive_name(workspace.gate)} is being restored; nothing starts before it is in place"
            self.default(ConditionType.DATA_READY, Truth.FALSE, Reason.RESTORE_PENDING, pending)
        elif workspace is not None and workspace.prepared:
            source = workspace.restored_from
            reason = Reason.RESTORED if source else Reason.PRESENT
            self.default(ConditionType.DATA_READY, Truth.TRUE, reason, f"restored from {source}" if source else "")
        put_away = self.world.record.put_away
        if workspace is None and put_away is not None:
            self.default(ConditionType.PRESERVED, Truth.TRUE, Reason.ARCHIVED, archive_name(put_away.archive))
        self._fill_network()
        self.default(ConditionType.DEGRADED, Truth.FALSE, Reason.AS_EXPECTED)

    def _fill_network(self) -> None:
        sandbox = self.world.observed.sandbox
        if isinstance(sandbox, Present) and sandbox.it.attached and not sandbox.it.damage:
            attached = sandbox.it.mode is NetworkMode.CNI
            self.default(ConditionType.NETWORK_READY, Truth.TRUE, Reason.ATTACHED if attached else Reason.CONFIGURED)
        elif isinstance(sandbox, Present):
            self.default(ConditionType.NETWORK_READY, Truth.FALSE, Reason.IN_PROGRESS, sandbox.it.damage)
        elif isinstance(sandbox, Unknown):
            self.default(ConditionType.NETWORK_READY, Truth.UNKNOWN, Reason.NETWORK_FAILED, sandbox.why)

    def default(self, type_: ConditionType, truth: Truth, reason: Reason, message: str = "") -> None:
        """Set one condition unless something else was said of it before."""
        if type_ not in self._conditions:
            self.set(type_, truth, reason, message)


def _archive_of(record: Record) -> ArchiveFacts | None:
    """The archive that the data is in: of the workspace as it is now, or in its place."""
    if record.workspace is not None:
        return record.workspace.archived
    return record.put_away.archive if record.put_away is not None else None


def _last_request(record: Record) -> RequestStatus | None:
    """As the journal has it; where that was lost, the status goes on telling what it told."""
    last = record.last_request
    if last is None:
        return None
    return RequestStatus(id=last.id, outcome=last.outcome.value, code=last.code.value, message=last.message[:1024])


def _last_operation(record: Record) -> str | None:
    return operation_id(record.ref.uid, record.numbered_from, record.operations) if record.operations else None


def is_running(world: World) -> bool:
    """Whether the main process was seen alive."""
    task = world.observed.task
    return isinstance(task, Present) and task.it.state is TaskState.RUNNING
