"""The stories of the crash matrix: what people and the world do to one runtime, and what it must come to."""

from __future__ import annotations

from typing import Any

import msgspec
from tests.crash.matrix import ABOUT_ARCHIVES, Act, Goal, Stage, Story
from tests.crash.plant import Survivors

from perdure.api import names
from perdure.api.names import Kind
from perdure.api.probes import ExecAction, Probe
from perdure.api.runtime import (
    DeletionPolicy,
    DesiredState,
    Restore,
    RestorePolicy,
    Runtime,
    RuntimeSpec,
)
from perdure.plan.health import HealthKind
from perdure.plan.world import Op, TaskState

KEY = (Kind.BOT, "agents", "hermes")
SPEC = RuntimeSpec(image="example/image:1", command=("/bin/run",))

# ---------------------------------------------------------------------------------------------- what is done


def create(spec: RuntimeSpec = SPEC) -> Act:
    def act(survivors: Survivors) -> None:
        survivors.cluster.create(*KEY, spec)

    return act


def edit(**changes: Any) -> Act:
    def act(survivors: Survivors) -> None:
        survivors.cluster.edit(*KEY, msgspec.structs.replace(survivors.cluster.runtimes[KEY].spec, **changes))

    return act


def delete(survivors: Survivors) -> None:
    if KEY in survivors.cluster.runtimes:
        survivors.cluster.delete(*KEY)


def delete_with(policy: DeletionPolicy) -> Act:
    def act(survivors: Survivors) -> None:
        edit(deletion_policy=policy)(survivors)
        delete(survivors)

    return act


def purge_after_all(survivors: Survivors) -> None:
    """Preserve becomes Purge while the deletion is under way; too late if it is over."""
    if KEY in survivors.cluster.runtimes:
        edit(deletion_policy=DeletionPolicy.PURGE)(survivors)


def delete_with_purge_and_no_ledger(survivors: Survivors) -> None:
    survivors.tables.away = "connection refused"
    delete_with(DeletionPolicy.PURGE)(survivors)


def purge_is_taken_back(survivors: Survivors) -> None:
    """Purge becomes Preserve before the ledger has heard of it."""
    edit(deletion_policy=DeletionPolicy.PRESERVE)(survivors)
    survivors.tables.away = None


def process_crashes(code: int = 1) -> Act:
    def act(survivors: Survivors) -> None:
        for container in list(survivors.machine.tasks):
            survivors.machine.end(container, code)

    return act


def force_release(survivors: Survivors) -> None:
    survivors.cluster.annotate(*KEY, {names.ANNOTATION_FORCE_RELEASE: "the store is broken for good"})


def lose_journal(survivors: Survivors) -> None:
    survivors.disk.records.clear()
    survivors.disk.unsent.clear()


def lose_journal_and_delete(survivors: Survivors) -> None:
    lose_journal(survivors)
    delete(survivors)


def delete_with_a_broken_store(survivors: Survivors) -> None:
    survivors.store.broken = "the disk is gone"
    delete(survivors)


def tear_finalizer_off(survivors: Survivors) -> None:
    """Somebody makes the object go at once; the rest has to follow without it."""
    if KEY in survivors.cluster.runtimes:
        survivors.cluster.remove(survivors.cluster.runtimes[KEY])


def tear_finalizer_off_and_bring_ledger_back(survivors: Survivors) -> None:
    tear_finalizer_off(survivors)
    survivors.tables.away = None


# ---------------------------------------------------------------------------------------------- what it comes to


def the(survivors: Survivors) -> Runtime | None:
    return survivors.cluster.runtimes.get(KEY)


def condition(survivors: Survivors, type_: str) -> tuple[str, str]:
    runtime = the(survivors)
    found = [c for c in runtime.status.conditions if c.type == type_] if runtime is not None else []
    return (found[0].status, found[0].reason) if found else ("", "")


def running(survivors: Survivors) -> bool:
    tasks = [task for task in survivors.machine.tasks.values() if task.facts.state is TaskState.RUNNING]
    runtime = the(survivors)
    return (
        runtime is not None
        and runtime.status.phase == "Running"
        and condition(survivors, "Ready")[0] == "True"
        and len(tasks) == len(survivors.machine.tasks) == 1
    )


def says(unwell: str | None) -> Act:
    def act(survivors: Survivors) -> None:
        survivors.machine.unwell = unwell

    return act


def told(goal: Goal, *kinds: HealthKind) -> Goal:
    """The goal, and exactly these health events in the ledger."""
    return lambda survivors: (
        goal(survivors) and sorted(row.kind for row in survivors.tables.health_events.values()) == sorted(kinds)
    )


def unready(survivors: Survivors) -> bool:
    return condition(survivors, "Ready") == ("False", "ProbeFailed") and len(survivors.machine.tasks) == 1


def running_after(starts: int) -> Goal:
    return lambda survivors: running(survivors) and len(survivors.machine.starts) >= starts


def running_with(args: tuple[str, ...]) -> Goal:
    return lambda survivors: (
        running(survivors)
        and all(container.plan.spec.args == args for container in survivors.machine.containers.values())
    )


def in_phase(phase: str) -> Goal:
    def goal(survivors: Survivors) -> bool:
        runtime = the(survivors)
        return runtime is not None and runtime.status.phase == phase and not survivors.machine.tasks

    return goal


def gone(survivors: Survivors) -> bool:
    """No object, nothing of it on the engine, and no record of it."""
    machine = survivors.machine
    things = (machine.snapshots, machine.containers, machine.tasks, survivors.sandboxes.made, survivors.disk.records)
    return the(survivors) is None and not any(things) and not survivors.tables.ports


def preserved(count: int | None) -> Goal:
    """`count`: in how many archives; None: however many."""
    return lambda survivors: gone(survivors) and count in (None, len(survivors.cluster.archives))


def purged(survivors: Survivors) -> bool:
    tables = survivors.tables
    return (
        gone(survivors)
        and not survivors.store.archives
        and not survivors.cluster.archives
        and all(entry.state == "purged" for entry in tables.archives.values())
        and all(entry.released for entry in tables.runtimes.values())
    )


def purge_is_not_committed(survivors: Survivors) -> bool:
    """It is in the node's journal, and nowhere else."""
    operations = [record.operation for record in survivors.disk.records.values()]
    return [(it.op, it.committed) for it in operations if it is not None] == [(Op.PURGE, False)]


def released_by_force(survivors: Survivors) -> bool:
    machine = survivors.machine
    return the(survivors) is None and not machine.containers and not machine.tasks and len(machine.snapshots) == 1


START = Stage(create(), running)
PROBE = Probe(exec=ExecAction(command=("/bin/sh", "-c", "exit 0")), period_seconds=1, failure_threshold=2)
ASKED = msgspec.structs.replace(SPEC, readiness_probe=PROBE)
WATCHED = msgspec.structs.replace(SPEC, liveness_probe=PROBE)
PRESERVE = Stage(delete, preserved(1))
LATEST = Stage(create(), running_after(2))
BY_NAME = msgspec.structs.replace(SPEC, restore=Restore(policy=RestorePolicy.ARCHIVE, archive="br-hermes-1"))


CRASHED = (HealthKind.STARTED, HealthKind.EXITED, HealthKind.STARTED)


def _during(act: Act, goal: Goal, call: str, interrupt: Act) -> Stage:
    return Stage(act, goal, during=call, interrupt=interrupt)


def _either(*goals: Goal) -> Goal:
    return lambda survivors: any(goal(survivors) for goal in goals)


STORIES: tuple[Story, ...] = (
    Story("create", (START,)),
    Story(
        "crash",
        (
            START,
            Stage(process_crashes(), told(running_after(2), *CRASHED)),
            Stage(process_crashes(0), told(running_after(3), *CRASHED, HealthKind.EXITED, HealthKind.STARTED)),
        ),
        tried_from=1,
    ),
    Story(
        "not ready for a while",
        (
            Stage(create(ASKED), told(running, HealthKind.STARTED)),
            Stage(says("status 500"), told(unready, HealthKind.STARTED, HealthKind.PROBE_FAILED)),
            Stage(says(None), told(running, HealthKind.STARTED, HealthKind.PROBE_FAILED, HealthKind.PROBE_RECOVERED)),
        ),
    ),
    Story(
        "ended for its liveness probe",
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
    ),
    Story(
        "stop and start",
        (
            START,
            Stage(edit(desired_state=DesiredState.STOPPED), in_phase("Stopped")),
            Stage(edit(desired_state=DesiredState.RUNNING), running_after(2)),
        ),
        tried_from=1,
    ),
    Story(
        "remove and start",
        (
            START,
            Stage(edit(desired_state=DesiredState.REMOVED), in_phase("Removed")),
            Stage(edit(desired_state=DesiredState.RUNNING), running_after(2)),
        ),
        varies=ABOUT_ARCHIVES,
        tried_from=1,
    ),
    Story("change what is run", (START, Stage(edit(args=("other",)), running_with(("other",)))), tried_from=1),
    Story("preserve", (START, PRESERVE), tried_from=1),
    Story("preserve and bring back", (START, PRESERVE, LATEST), tried_from=2),
    Story(
        "restore by name",
        (START, PRESERVE, LATEST, Stage(delete, preserved(2)), Stage(create(BY_NAME), running_after(3))),
        tried_from=4,
    ),
    Story(
        "purge with archives",
        (START, PRESERVE, LATEST, Stage(delete_with(DeletionPolicy.PURGE), purged)),
        purged=True,
        tried_from=3,
    ),
    Story(
        "purge after all",
        (START, _during(delete, purged, "archives.export_half", purge_after_all)),
        purged=True,
        tried_from=1,
    ),
    Story(
        "purge taken back before it was committed",
        (
            *(START, PRESERVE, LATEST),
            Stage(delete_with_purge_and_no_ledger, purge_is_not_committed),
            Stage(purge_is_taken_back, preserved(2)),
        ),
        tried_from=4,
    ),
    Story(
        "object torn off before its purge was committed",
        (
            *(START, PRESERVE, LATEST),
            Stage(delete_with_purge_and_no_ledger, purge_is_not_committed),
            Stage(tear_finalizer_off_and_bring_ledger_back, preserved(2)),
        ),
        tried_from=4,
    ),
    Story("lost journal", (START, Stage(lose_journal, running, restarts=True)), tried_from=1),
    Story(
        "lost journal, then deleted", (START, Stage(lose_journal_and_delete, preserved(1), restarts=True)), tried_from=1
    ),
    Story(
        "object torn off in its deletion",
        (START, _during(delete, preserved(1), "engine.signal_task", tear_finalizer_off)),
        tried_from=1,
    ),
    Story("deleted while creating", (_during(create(), gone, "engine.prepare_workspace", delete),)),
    Story("deleted while starting", (_during(create(), preserved(1), "engine.start_task", delete),)),
    Story(
        "deleted while restoring",
        (START, PRESERVE, _during(create(), preserved(1), "archives.restore_half", delete)),
        tried_from=2,
    ),
    Story(
        "released by force",
        (
            START,
            Stage(delete_with_a_broken_store, lambda s: condition(s, "Preserved") == ("False", "StoreUnavailable")),
            Stage(force_release, released_by_force),
        ),
        tried_from=1,
    ),
)
