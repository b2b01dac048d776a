"""Clean-up of what is stopped: its data archived and verified, then container, network and snapshot removed.

One path for three reasons: `spec.stoppedTTL` is over, a request by annotation, `desiredState: Removed`. Asked by the rules
for what is stopped; nothing here is reached while a task is there, and each step is followed by another look at it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from perdure.api.conditions import ConditionType, Reason, Truth
from perdure.api.phases import Phase
from perdure.api.request import RequestId, Verb
from perdure.api.runtime import DesiredState
from perdure.plan.certainty import Present
from perdure.plan.operations import closing, opening
from perdure.plan.requests import pending_request
from perdure.plan.scene import Scene
from perdure.plan.steps import ArchiveWorkspace, Finish, Ground, Note, Plan, RemoveWorkspace
from perdure.plan.view import archive_name
from perdure.plan.way_down import take_down
from perdure.plan.world import Code, Op, Outcome, Source, TaskState, Workspace

CLOCK_ERROR_SECONDS = 600.0
"""From five minutes slow to five minutes fast, without anything being cleaned up too early."""

_REASONS = {
    Source.AUTO_TTL: Reason.EXPIRED,
    Source.ADMIN_CLI: Reason.CLEANUP_REQUESTED,
}


@dataclass(frozen=True, slots=True)
class _Trigger:
    source: Source
    request: RequestId | None = None


def clean_up_if_due(scene: Scene) -> Plan | None:
    """The next step of a clean-up that is wanted now, or the end of one whose last effect is there."""
    record = scene.record
    begun = record.operation is not None and record.operation.op is Op.CLEANUP
    trigger = _trigger(scene)
    if trigger is None and begun and removable(scene) is None and record.operation is not None:
        trigger = _Trigger(record.operation.source, record.operation.request)
    if trigger is None or not (begun or _is_anything_left(scene)):
        return None
    freeze = scene.world.freeze
    if freeze is not None:
        scene.draft.set(ConditionType.DEGRADED, Truth.TRUE, freeze.reason, freeze.message)
        return scene.wait(freeze.reason, freeze.message, phase=record.phase or Phase.STOPPED)
    if record.operation is not None and not begun:
        done = closing(record, {Op.STOP}, Phase.STOPPED)
        return scene.do(*((done,) if done is not None else ()), phase=Phase.STOPPED)
    first = opening(record, Op.CLEANUP, trigger.source, trigger.request)
    if first is not None:
        return scene.do(first, phase=Phase.STOPPED if removable(scene) else resting_phase(scene))
    return _next_step(scene, trigger.source)


def _next_step(scene: Scene, source: Source) -> Plan:
    workspace = removable(scene)
    if workspace is not None and scene.archived is None:
        return scene.do(ArchiveWorkspace(workspace.key))
    removing = take_down(scene, Op.CLEANUP, source)
    if removing is not None:
        return removing
    if workspace is not None:
        return scene.do(RemoveWorkspace(workspace.key, Ground.ARCHIVED))
    after = resting_phase(scene)
    return scene.do(Finish(Outcome.SUCCESS, after, _what_became_of_it(scene)), phase=after)


def _what_became_of_it(scene: Scene) -> str:
    record = scene.record
    if record.workspace is not None:
        return "its data is still to be restored; that snapshot stays"
    if record.put_away is not None:
        return f"its data is kept as archive {archive_name(record.put_away.archive)}"
    return "there was no data"


def _trigger(scene: Scene) -> _Trigger | None:
    if scene.runtime.spec.desired_state is DesiredState.REMOVED:
        return _Trigger(Source.KUBECTL)
    request = pending_request(scene)
    if request is not None and request.verb is Verb.CLEANUP:
        return _Trigger(Source.ADMIN_CLI, request.id)
    at = due_at(scene)
    return _Trigger(Source.AUTO_TTL) if at is not None and scene.now >= at else None


def removable(scene: Scene) -> Workspace | None:
    """The workspace that a clean-up archives and removes. One that waits for its restore holds nothing of its own."""
    workspace = scene.workspace
    return workspace if workspace is not None and workspace.gate is None else None


def _is_anything_left(scene: Scene) -> bool:
    observed = scene.world.observed
    if removable(scene) is not None or isinstance(observed.container, Present) or isinstance(observed.sandbox, Present):
        return True
    return scene.record.phase is not Phase.REMOVED and scene.runtime.spec.desired_state is DesiredState.REMOVED


def expires_at(scene: Scene) -> float | None:
    """When a stopped runtime is cleaned up: counted from when its process last ended, and from nothing else."""
    ttl, stopped_at = scene.runtime.spec.stopped_ttl_seconds, scene.record.stopped_at
    if ttl is None or stopped_at is None or removable(scene) is None:
        return None
    return stopped_at + ttl


def due_at(scene: Scene) -> float | None:
    """When it is really done: by both clocks, so that a wall clock that is set makes nothing expire too early.

    Where only the wall clock can tell (there was a reboot in between), it is given some minutes to be wrong.
    """
    at, ttl = expires_at(scene), scene.runtime.spec.stopped_ttl_seconds
    if at is None or not ttl:
        return at
    uptime = scene.world.uptime
    elapsed = uptime.since(scene.record.stopped_up) if uptime is not None else None
    if elapsed is None:
        return at + CLOCK_ERROR_SECONDS
    return at if elapsed >= ttl else max(at, scene.now + ttl - elapsed)


def is_counted(scene: Scene) -> Plan | None:
    """Where nobody remembers when the process ended (the journal was lost), the time is counted from now."""
    unknown = scene.record.stopped_at is None and removable(scene) is not None
    if not unknown or scene.runtime.spec.stopped_ttl_seconds is None:
        return None
    counted = replace(scene.record, stopped_at=scene.now, stopped_up=scene.world.uptime)
    return scene.do(Note(counted, "nobody remembers when it stopped"))


def resting_phase(scene: Scene) -> Phase:
    """Of what is stopped: what was cleaned up stays Removed until it is to run again."""
    removed = scene.runtime.spec.desired_state is DesiredState.REMOVED
    return Phase.REMOVED if removed or is_put_away(scene) else Phase.STOPPED


def resting_reason(scene: Scene, otherwise: Reason) -> Reason:
    """Why it is stopped: `otherwise` where no clean-up had a part in it."""
    put_away = scene.record.put_away
    if scene.runtime.spec.desired_state is DesiredState.REMOVED:
        return Reason.REMOVE_REQUESTED
    if put_away is not None and is_put_away(scene):
        return _REASONS.get(put_away.source, Reason.REMOVE_REQUESTED)
    return otherwise


def is_put_away(scene: Scene) -> bool:
    return scene.workspace is None and scene.record.put_away is not None


def task_came_between(scene: Scene) -> Plan | None:
    """Somebody started a task while a clean-up was under way: it is left alone, and the clean-up is over."""
    operation, task = scene.record.operation, scene.task
    if operation is None or operation.op is not Op.CLEANUP or task is None or task.state is TaskState.STOPPED:
        return None
    message = "a task was started meanwhile; stop it first"
    after = operation.before or Phase.STOPPED
    return scene.do(Finish(Outcome.FAILURE, after, message, code=Code.CONFLICT), phase=after)
