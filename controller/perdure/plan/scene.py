"""The stage on which the rules play: one look at a runtime, and the kinds of answers that a rule can give.

Rules are functions from a Scene to a Plan or None ("nothing to say"); each file of rules covers one concern. `wanted` says
in which order they are asked of an object that is to live, `deletion` of one that is being deleted or gone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from perdure.api.conditions import ConditionType, Reason, Truth
from perdure.api.phases import Phase
from perdure.api.runtime import DeletionPolicy, Runtime
from perdure.plan.certainty import Absent, Present
from perdure.plan.health import has_come_up
from perdure.plan.operations import TOWARDS_RUNNING, TRANSIENT_PHASE, opening
from perdure.plan.spec_hash import spec_mark
from perdure.plan.steps import (
    Begin,
    CreateSandbox,
    Finish,
    Plan,
    Step,
    Waiting,
)
from perdure.plan.view import StatusDraft, is_running
from perdure.plan.world import (
    ArchiveFacts,
    ImageFacts,
    Op,
    Record,
    SnapshotFacts,
    Source,
    TaskFacts,
    Workspace,
    World,
)


@dataclass(frozen=True, slots=True)
class Scene:
    """What every rule looks at. Past `engine_is_away` the engine's facts are certain."""

    world: World
    runtime: Runtime
    now: float
    draft: StatusDraft

    @property
    def record(self) -> Record:
        return self.world.record

    @property
    def workspace(self) -> Workspace | None:
        return self.world.record.workspace

    @property
    def archived(self) -> ArchiveFacts | None:
        """A verified archive of exactly the workspace's snapshot."""
        workspace = self.workspace
        facts = workspace.archived if workspace is not None else None
        return facts if facts is not None and workspace is not None and facts.snapshot_key == workspace.key else None

    @property
    def mark(self) -> str:
        return spec_mark(self.runtime.spec)

    @property
    def task(self) -> TaskFacts | None:
        task = self.world.observed.task
        return task.it if isinstance(task, Present) else None

    @property
    def snapshots(self) -> tuple[SnapshotFacts, ...]:
        snapshots = self.world.observed.snapshots
        return snapshots.it if isinstance(snapshots, Present) else ()

    @property
    def image(self) -> ImageFacts | None:
        image = self.world.observed.image
        return image.it if isinstance(image, Present) else None

    @property
    def transient(self) -> Phase:
        """The phase while the open operation goes on."""
        operation = self.record.operation
        if self.runtime.terminating:
            if operation is not None and operation.op not in TOWARDS_RUNNING:
                return TRANSIENT_PHASE[operation.op]
            purging = self.runtime.spec.deletion_policy is DeletionPolicy.PURGE
            return Phase.PURGING if purging else Phase.PRESERVING
        if self.workspace is not None and self.workspace.gate is not None:
            return Phase.RESTORING
        if self.workspace is not None and operation is not None and operation.op is Op.RESTORE:
            return Phase.CREATING  # the data is in place: what is left of the operation is a start
        return TRANSIENT_PHASE[operation.op] if operation else self.record.phase or Phase.PENDING

    def show_alive(self) -> float | None:
        """Ready or not, and, if it only has not been alive for long enough, when it will have been."""
        ready_at = (self.record.started_at or self.now) + self.runtime.spec.min_ready_seconds
        if self.now < ready_at:
            self.draft.set(ConditionType.READY, Truth.FALSE, Reason.MIN_READY)
            return ready_at
        self._show_probed()
        return None

    def _show_probed(self) -> None:
        """What the journal has of the probes, which holds while this process has not asked them yet."""
        spec, health = self.runtime.spec, self.record.health
        if not has_come_up(spec, health):
            message = "its startup probe has not succeeded yet"
            self.draft.set(ConditionType.READY, Truth.FALSE, Reason.PROBE_PENDING, message)
        elif spec.readiness_probe is not None and health.ready is None:
            message = "its readiness probe has not succeeded yet"
            self.draft.set(ConditionType.READY, Truth.FALSE, Reason.PROBE_PENDING, message)
        elif spec.readiness_probe is not None and not health.ready:
            self.draft.set(ConditionType.READY, Truth.FALSE, Reason.PROBE_FAILED, health.message)
        else:
            self.draft.set(ConditionType.READY, Truth.TRUE, Reason.RUNNING)

    # ------------------------------------------------------------------------------ the three kinds of answers

    def do(self, *steps: Step, phase: Phase | None = None) -> Plan:
        if not is_running(self.world):
            self.draft.set(ConditionType.READY, Truth.FALSE, Reason.IN_PROGRESS)
        return Plan(steps=steps, status=self.draft.build(phase or self.transient))

    def under(self, op: Op, source: Source, *steps: Step) -> Plan:
        """These steps, after the intent of `op` is committed; after the end of another operation is, only that."""
        first = opening(self.record, op, source)
        if first is None:
            return self.do(*steps)
        return self.do(first, *(steps if isinstance(first, Begin) else ()), phase=TRANSIENT_PHASE[op])

    def rest(self, done: Finish | None, phase: Phase, *, wake_at: float | None = None) -> Plan:
        """Nothing is left to do but to close the operation and to show the end."""
        steps = (done,) if done is not None else ()
        return Plan(steps=steps, status=self.draft.build(phase), wake_at=wake_at, settled=True)

    def wait(self, reason: Reason, message: str, *, until: float | None = None, phase: Phase | None = None) -> Plan:
        self.draft.set(ConditionType.READY, Truth.FALSE, reason, message)
        status = self.draft.build(phase or self.transient)
        return Plan(status=status, wake_at=until, waiting=Waiting(reason, message, until))

    def block(self, reason: Reason, message: str) -> Plan:
        """Data is at stake: nothing more happens until a person decides."""
        self.draft.set(ConditionType.DATA_READY, Truth.FALSE, reason, message)
        return self.wait(reason, message, phase=Phase.BLOCKED)


Rule = Callable[[Scene], Plan | None]


def sandbox_if_missing(scene: Scene) -> tuple[Step, ...]:
    return (CreateSandbox(),) if isinstance(scene.world.observed.sandbox, Absent) else ()
