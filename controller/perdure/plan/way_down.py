"""The way down that stopping, cleaning up and deleting share: no task, then no container around the data."""

from __future__ import annotations

from perdure.api.conditions import Reason
from perdure.plan.certainty import Present, Unknown
from perdure.plan.scene import Scene
from perdure.plan.steps import Plan, ReapTask, RemoveContainer, RemoveSandbox, Step, StopTask
from perdure.plan.world import Exit, Op, Source, TaskState

SANDBOX_RETRY_SECONDS = 5.0
DEFAULT_STOP_SIGNAL = "SIGTERM"
_FOR_GOOD = frozenset({Op.PRESERVE, Op.PURGE})
"""Operations after which no container is left."""


def stop_and_reap(scene: Scene, op: Op, source: Source, grace_seconds: float | None = None) -> Plan | None:
    """Until no task is left: stop a live one, then journal and delete the ended one. None when there is none.

    `grace_seconds`: instead of the spec's."""
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
        grace = float(stop.grace_period_seconds if grace_seconds is None else grace_seconds)
        return scene.under(op, source, StopTask(container, signal, grace, preflight))
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
