"""Rules about memory: that the kernel killed something of a container is told, also where the main process lives on.

Called with the other rules for what runs, and when an end is told.
"""

from __future__ import annotations

from dataclasses import replace

from perdure.api.phases import Phase
from perdure.plan.health import HealthEvent, HealthKind
from perdure.plan.scene import Scene
from perdure.plan.steps import Note, Plan
from perdure.plan.world import TaskState

PAUSE_SECONDS = 60.0
"""What is killed again and again is told once in so long, with how many it were."""


def kills_told(scene: Scene) -> tuple[HealthEvent, ...]:
    """What the kernel killed since it was told last."""
    more = scene.task.ooms - scene.record.health.ooms if scene.task is not None else 0
    if more <= 0:
        return ()
    what = "a process" if more == 1 else f"{more} processes"
    return (HealthEvent(HealthKind.OOM, f"the kernel killed {what} of it at its memory limit"),)


def kills_are_told(scene: Scene) -> Plan | None:
    """Of a task that runs; the end of one tells what is left to tell."""
    task, record = scene.task, scene.record
    if task is None or task.state is not TaskState.RUNNING or not record.running:
        return None
    told = kills_told(scene)
    if not told or scene.now - record.health.oom_at < PAUSE_SECONDS:
        return None
    health = replace(record.health, ooms=task.ooms, oom_at=scene.now)
    return scene.do(Note(replace(record, health=health), "the kernel killed for memory", told), phase=Phase.RUNNING)
