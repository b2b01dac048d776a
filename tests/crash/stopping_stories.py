"""Stories of main processes that do not end when they are told to: the signal, a long wait, SIGKILL."""

from __future__ import annotations

import msgspec
from tests.crash.matrix import Goal, Stage, Story
from tests.crash.plant import Survivors
from tests.crash.stories import (
    PROBE,
    SPEC,
    create,
    delete,
    edit,
    in_phase,
    preserved,
    purged,
    running,
    running_after,
    says,
    the,
    told,
)

from perdure.api.runtime import DeletionPolicy, DesiredState, Stop
from perdure.plan.health import HealthKind

PATIENT_SECONDS = 100
"""Longer than a lease lives without being renewed."""
DEAF = msgspec.structs.replace(
    SPEC,
    command=("/bin/sh", "-c", "trap '' TERM"),
    stop=Stop(grace_period_seconds=PATIENT_SECONDS),
    stopped_ttl="Never",
)
ENDLESS = msgspec.structs.replace(DEAF, stop=Stop(grace_period_seconds=86_400))
WATCHED = msgspec.structs.replace(DEAF, liveness_probe=PROBE)

START = Stage(create(DEAF), told(running, HealthKind.STARTED))
START_ENDLESS = Stage(create(ENDLESS), running)


def asked_in_phase(phase: str) -> Goal:
    """It was told to stop, that is on record, and it is still there."""

    def goal(survivors: Survivors) -> bool:
        runtime = the(survivors)
        asked = [record.stop_asked for record in survivors.disk.records.values()]
        shown = runtime is not None and runtime.status.phase == phase
        return shown and all(asked) and len(survivors.machine.tasks) == 1

    return goal


def removed(survivors: Survivors) -> bool:
    return in_phase("Removed")(survivors) and len(survivors.cluster.archives) == 1


def purge_without_grace(survivors: Survivors) -> None:
    edit(deletion_policy=DeletionPolicy.PURGE, stop=Stop(grace_period_seconds=0))(survivors)


STOPPED = edit(desired_state=DesiredState.STOPPED)
RUNNING = edit(desired_state=DesiredState.RUNNING)
NO_GRACE = edit(stop=Stop(grace_period_seconds=0))

STOPPING_STORIES: tuple[Story, ...] = (
    Story(
        "deaf: stop and start",
        (
            START,
            Stage(STOPPED, told(in_phase("Stopped"), HealthKind.STARTED)),
            Stage(RUNNING, told(running_after(2), HealthKind.STARTED, HealthKind.STARTED)),
        ),
        tried_from=1,
    ),
    Story("deaf: remove", (START, Stage(edit(desired_state=DesiredState.REMOVED), removed)), tried_from=1),
    Story("deaf: preserve", (START, Stage(delete, preserved(1))), tried_from=1),
    Story(
        "deaf: wanted again while it is being stopped",
        (
            START,
            Stage(STOPPED, asked_in_phase("Stopping")),
            Stage(RUNNING, told(running_after(2), HealthKind.STARTED, HealthKind.STARTED)),
        ),
        tried_from=1,
    ),
    Story(
        "deaf: a lower grace counts at once",
        (START_ENDLESS, Stage(STOPPED, asked_in_phase("Stopping")), Stage(NO_GRACE, in_phase("Stopped"))),
        tried_from=1,
    ),
    Story(
        "deaf: deleted while it is being stopped, then purged",
        (
            START_ENDLESS,
            Stage(STOPPED, asked_in_phase("Stopping")),
            Stage(delete, asked_in_phase("Preserving")),
            Stage(purge_without_grace, purged),
        ),
        purged=True,
        tried_from=1,
    ),
    Story(
        "deaf: ended for its liveness probe",
        (
            Stage(create(WATCHED), told(running, HealthKind.STARTED)),
            Stage(
                says("status 500"),
                told(
                    running_after(2),
                    *(HealthKind.STARTED, HealthKind.PROBE_FAILED, HealthKind.STARTED, HealthKind.PROBE_RECOVERED),
                ),
            ),
        ),
        tried_from=1,
    ),
)
