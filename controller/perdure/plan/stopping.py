"""Rules for Stopped and Removed: no task, and, when it is time, no container either."""

from __future__ import annotations

from dataclasses import replace

from perdure.api.conditions import ConditionType, Reason, Truth
from perdure.api.runtime import DesiredState
from perdure.plan import cleanup, probes
from perdure.plan.operations import closing, opening
from perdure.plan.scene import Scene
from perdure.plan.steps import Note, Plan
from perdure.plan.way_down import is_stopping, stop_and_reap
from perdure.plan.world import Op, Source


def stop_is_wanted(scene: Scene) -> Plan | None:
    if scene.runtime.spec.desired_state is DesiredState.RUNNING:
        return None
    stopping = stop_and_reap(scene, Op.STOP, Source.KUBECTL)
    if stopping is not None:
        return stopping
    return cleanup.clean_up_if_due(scene) or cleanup.is_counted(scene) or _at_rest(scene)


def stop_goes_on(scene: Scene) -> Plan | None:
    """What was told to stop is stopped, though it is wanted again meanwhile: nobody knows how much of it still works."""
    if not is_stopping(scene):
        return None
    if scene.record.health.ended_for:
        return probes.end_unwell(scene)
    operation = scene.record.operation
    if operation is not None and operation.op is Op.STOP:
        return stop_and_reap(scene, Op.STOP, operation.source)
    return stop_and_reap(scene, Op.RESTART, Source.KUBECTL)


def _at_rest(scene: Scene) -> Plan:
    phase, record = cleanup.resting_phase(scene), scene.record
    scene.draft.set(ConditionType.READY, Truth.FALSE, cleanup.resting_reason(scene, Reason.STOP_REQUESTED))
    scene.draft.expires_at = cleanup.expires_at(scene)
    halted_or_waiting = record.halted is not None or record.next_start_at is not None
    if halted_or_waiting:
        rested = replace(record, halted=None, next_start_at=None, failures_in_row=0)
        return Plan(steps=(Note(rested, "stopped by wish"),), status=scene.draft.build(phase))
    if record.operation is None and record.phase is not phase:
        begun = opening(record, Op.STOP, Source.KUBECTL)
        return Plan(steps=(begun,) if begun else (), status=scene.draft.build(phase))
    return scene.rest(closing(record, {Op.STOP}, phase), phase, wake_at=cleanup.due_at(scene))
