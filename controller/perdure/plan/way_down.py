"""The way down that stopping, cleaning up and deleting share: no task, then no container around the data.

A stop has two phases, and nobody waits for the time between them: the signal, then, when the grace period is over and
the process is still there, SIGKILL. What was sent to whom, and when, is journalled: an agent that is started again goes
on with the grace period where it was.
"""

from __future__ import annotations

from perdure.api.conditions import ConditionType, Reason, Truth
from perdure.plan.certainty import Present, Unknown
from perdure.plan.operations import opening
from perdure.plan.scene import Scene
from perdure.plan.steps import KillTask, Plan, ReapTask, RemoveContainer, RemoveSandbox, Step, StopTask, Waiting
from perdure.plan.world import Exit, Op, Source, TaskFacts, TaskState

SANDBOX_RETRY_SECONDS = 5.0
DEFAULT_STOP_SIGNAL = "SIGTERM"
CLOCK_SLACK_SECONDS = 0.05
"""So much later than the end of the grace period it is looked at again: timers and this clock are not the same."""
_FOR_GOOD = frozenset({Op.PRESERVE, Op.PURGE})
"""Operations after which no container is left."""


def stop_and_reap(scene: Scene, op: Op, source: Source, grace_seconds: float | None = None) -> Plan | None:
    """Until no task is left: stop a live one, then journal and delete the ended one. None when there is none.

    `grace_seconds`: instead of the spec's."""
    task, record = scene.task, scene.record
    if task is None and not record.running:
        return None
    if task is not None and task.state is not TaskState.STOPPED:
        grace = scene.runtime.spec.stop.grace_period_seconds if grace_seconds is None else grace_seconds
        return _stop(scene, task, op, source, float(grace))
    ended = task.exit if task is not None else Exit(None, scene.now)
    reap = ReapTask(scene.world.ref.container_id, ended, 0, None, None, record.restarts)
    # What ends for good takes its network along at once: the engine and the plugins do not wait for each other.
    network = (RemoveSandbox(),) if op in _FOR_GOOD and isinstance(scene.world.observed.sandbox, Present) else ()
    return scene.under(op, source, reap, *network)


def is_stopping(scene: Scene) -> bool:
    """Whether the live main process was sent the stop signal before."""
    task = scene.task
    return task is not None and task.state is not TaskState.STOPPED and _since_asked(scene, task) is not None


def _stop(scene: Scene, task: TaskFacts, op: Op, source: Source, grace: float) -> Plan:
    """`grace`: as it is now, whatever it was when the signal was sent."""
    container = scene.world.ref.container_id
    message = f"its main process is being stopped: SIGKILL follows the stop signal after {grace:g} s"
    scene.draft.default(ConditionType.READY, Truth.FALSE, Reason.IN_PROGRESS, message)
    waited = _since_asked(scene, task)
    if waited is None:
        image = scene.image
        signal = scene.runtime.spec.stop.signal or (image.stop_signal if image else "") or DEFAULT_STOP_SIGNAL
        preflight = scene.workspace.key if op is Op.PRESERVE and scene.workspace is not None else None
        return scene.under(op, source, StopTask(container, task.pid, signal, grace, preflight))
    if waited >= grace:
        return scene.under(op, source, KillTask(container))
    if opening(scene.record, op, source) is not None:
        return scene.under(op, source)
    until = scene.now + grace - waited + CLOCK_SLACK_SECONDS
    waiting = Waiting(Reason.IN_PROGRESS, message, until)
    return Plan(status=scene.draft.build(scene.transient), wake_at=until, waiting=waiting)


def _since_asked(scene: Scene, task: TaskFacts) -> float | None:
    """Seconds since this process was sent the stop signal; None if it was not, as far as anybody knows: then it is sent
    again, which does no harm."""
    asked, uptime = scene.record.stop_asked, scene.world.uptime
    if asked is None or asked.pid != task.pid:
        return None
    return uptime.since(asked.at) if uptime is not None else 0.0


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
