"""Rules about what a person asks for once, by annotation: which request is open, and which is answered with a no.

What is to be done goes its own way (`cleanup`), and the end of that operation is the answer.
"""

from __future__ import annotations

from perdure.api.request import Request
from perdure.api.runtime import DesiredState
from perdure.plan.certainty import Present
from perdure.plan.scene import Scene
from perdure.plan.spec_hash import same_process
from perdure.plan.steps import Answer, Plan
from perdure.plan.view import archive_name
from perdure.plan.world import AnsweredRequest, Code, Outcome, TaskState


def pending_request(scene: Scene) -> Request | None:
    """The request that has not been answered yet. Where the journal was lost, the status tells which one was the last."""
    request, last = scene.runtime.request, scene.record.last_request
    if request is None or (last is not None and last.id == request.id):
        return None
    shown = scene.runtime.status.last_request
    return None if last is None and shown is not None and shown.id == request.id else request


def request_is_refused(scene: Scene) -> Plan | None:
    """What cannot be done, or is done already, is answered at once; nothing is touched."""
    request, operation = pending_request(scene), scene.record.operation
    if request is None or (operation is not None and operation.request == request.id):
        return None
    if scene.record.phase is None:
        return None  # nothing was done yet for this object: what it comes to is not known
    if request.problem:
        return _answer(request, Outcome.FAILURE, Code.INVALID_REQUEST, request.problem)
    if not _is_stopped(scene):
        return _conflict(scene, request)
    if operation is None and _is_nothing_left(scene):
        put_away = scene.record.put_away
        message = "there is nothing to clean up"
        if put_away is not None and scene.workspace is None:
            message = f"it was removed before; its data is kept as archive {archive_name(put_away.archive)}"
        return _answer(request, Outcome.SUCCESS, Code.REPLAY_NO_OP, message)
    return None


def is_halted(scene: Scene) -> bool:
    """Whether its process ended, the policy leaves it so, and what is to run is still the same."""
    halted = scene.record.halted
    return halted is not None and scene.task is None and same_process(halted.spec_hash, scene.mark)


def _is_stopped(scene: Scene) -> bool:
    """By what is there, not by what is recorded; one that we are about to stop counts, it will be."""
    if scene.runtime.spec.desired_state is DesiredState.RUNNING:
        return is_halted(scene) and not scene.record.running
    alive = scene.task is not None and scene.task.state is not TaskState.STOPPED
    return not alive or scene.record.running


def _is_nothing_left(scene: Scene) -> bool:
    observed = scene.world.observed
    removable = scene.workspace is not None and scene.workspace.gate is None
    present = scene.snapshots and scene.workspace is None
    around = isinstance(observed.container, Present) or isinstance(observed.sandbox, Present)
    return not (removable or present or around or scene.task is not None)


def _conflict(scene: Scene, request: Request) -> Plan:
    if scene.task is None:
        what = "it is to run and is about to be started"
    elif scene.runtime.spec.desired_state is DesiredState.RUNNING:
        what = "it is running"
    else:
        what = "somebody started it by hand"
    message = f"{what}: stop it first, with spec.desiredState: Stopped"
    return _answer(request, Outcome.FAILURE, Code.CONFLICT, message)


def _answer(request: Request, outcome: Outcome, code: Code, message: str) -> Plan:
    return Plan(steps=(Answer(AnsweredRequest(request.id, outcome, code, message)),))
