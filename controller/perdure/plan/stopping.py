"""Rules for Stopped and Removed, and the way down that deletion shares: no task, then no container around the data."""

from __future__ import annotations

from dataclasses import replace

from perdure.api.conditions import ConditionType, Reason, Truth
from perdure.api.phases import Phase
from perdure.api.runtime import DesiredState
from perdure.plan.certainty import Present, Unknown
from perdure.plan.operations import closing, opening
from perdure.plan.scene import Scene
from perdure.plan.steps import (
    Note,
    Plan,
    ReapTask,
    RemoveContainer,
    RemoveSandbox,
    Step,
    StopTask,
)
from perdure.plan.world import (
    Exit,
    Op,
    Source,
    TaskState,
)

SANDBOX_RETRY_SECONDS = 5.0
DEFAULT_STOP_SIGNAL = "SIGTERM"
_FOR_GOOD = frozenset({Op.CLEANUP, Op.PRESERVE, Op.PURGE})
"""Operations after which no container is left."""


def stop_is_wanted(scene: Scene) -> Plan | None:
    state = scene.runtime.spec.desired_state
    if state is DesiredState.RUNNING:
        return None
    op = Op.STOP if state is DesiredState.STOPPED else Op.CLEANUP
    stopping = stop_and_reap(scene, op, Source.KUBECTL)
    if stopping is not None:
        return stopping
    if state is DesiredState.REMOVED:
        removing = take_down(scene, op, Source.KUBECTL)
        if removing is not None:
            return removing
    return _at_rest(scene, op)


def _at_rest(scene: Scene, op: Op) -> Plan:
    stopped = scene.runtime.spec.desired_state is DesiredState.STOPPED
    phase = Phase.STOPPED if stopped else Phase.REMOVED
    reason = Reason.STOP_REQUESTED if stopped else Reason.REMOVE_REQUESTED
    scene.draft.set(ConditionType.READY, Truth.FALSE, reason)
    halted_or_waiting = scene.record.halted is not None or scene.record.next_start_at is not None
    if halted_or_waiting:
        rested = replace(scene.record, halted=None, next_start_at=None, failures_in_row=0)
        return Plan(steps=(Note(rested, "stopped by wish"),), status=scene.draft.build(phase))
    if scene.record.operation is None and scene.record.phase is not phase:
        begun = opening(scene.record, op, Source.KUBECTL)
        return Plan(steps=(begun,) if begun else (), status=scene.draft.build(phase))
    return scene.rest(closing(scene.record, {op}, phase), phase)


def stop_and_reap(scene: Scene, op: Op, source: Source) -> Plan | None:
    """Until no task is left: stop a live one, then journal and delete the ended one. None when there is none."""
    task, record = scene.task, scene.record
    container = scene.world.ref.container_id
    if task is None and not record.running:
        return None
    if task is not None and task.state is not TaskState.STOPPED:
        stop = scene.runtime.spec.stop
        image = scene.image
        signal = stop.signal or (image.stop_signal if image else "") or DEFAULT_STOP_SIGNAL
        preserve = op is Op.PRESERVE and scene.workspace is not None
        preflight = scene.workspace.key if preserve and scene.workspace is not None else None
        return scene.under(op, source, StopTask(container, signal, float(stop.grace_period_seconds), preflight))
    ended = task.exit if task is not None else Exit(None, scene.now)
    reap = ReapTask(container, ended, 0, None, None, record.restarts)
    # What ends for good takes its network along at once: the engine and the plugins do not wait for each other.
    network = (RemoveSandbox(),) if op in _FOR_GOOD and isinstance(scene.world.observed.sandbox, Present) else ()
    return scene.under(op, source, reap, *network)


def take_down(scene: Scene, op: Op, source: Source) -> Plan | None:
    """What is left of the container around the data; the snapshot stays. None when nothing is left."""
    sandbox = scene.world.observed.sandbox
    steps: list[Step] = []
    if isinstance(scene.world.observed.container, Present):
        steps.append(RemoveContainer(scene.world.ref.container_id))
    if isinstance(sandbox, Present):
        steps.append(RemoveSandbox())
    if steps:
        return scene.under(op, source, *steps)
    if isinstance(sandbox, Unknown):
        return scene.wait(Reason.NETWORK_FAILED, sandbox.why, until=scene.now + SANDBOX_RETRY_SECONDS)
    return None
