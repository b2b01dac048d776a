"""Stories of the crash matrix about the clean-up of what is stopped: by time, by request, by wish; and what may come
between."""

from __future__ import annotations

import msgspec
from tests.crash.matrix import ABOUT_ARCHIVES, Act, Goal, Stage, Story
from tests.crash.plant import Survivors
from tests.crash.stories import (
    KEY,
    PRESERVE,
    SPEC,
    START,
    condition,
    create,
    delete,
    delete_with,
    edit,
    gone,
    in_phase,
    lose_journal,
    preserved,
    process_crashes,
    purged,
    running,
    running_after,
    the,
)

from perdure.api import names
from perdure.api.request import RequestId, Verb, write_request
from perdure.api.runtime import DeletionPolicy, DesiredState, RestartPolicy, Restore, RestorePolicy
from perdure.plan.world import Op

SHORT = msgspec.structs.replace(SPEC, stopped_ttl="5s")
ONCE = msgspec.structs.replace(SHORT, restart_policy=RestartPolicy.NEVER)
LONG = msgspec.structs.replace(SPEC, stopped_ttl="Never")
NOTHING_OLD = msgspec.structs.replace(SHORT, restore=Restore(policy=RestorePolicy.NONE))

STOP = edit(desired_state=DesiredState.STOPPED)
RUN = edit(desired_state=DesiredState.RUNNING)
REMOVE = edit(desired_state=DesiredState.REMOVED)


def request_cleanup(id_: str) -> Act:
    def act(survivors: Survivors) -> None:
        survivors.cluster.annotate(*KEY, {names.ANNOTATION_REQUEST: write_request(Verb.CLEANUP, RequestId(id_))})

    return act


def start_by_hand(survivors: Survivors) -> None:
    """With the engine's own tool, as long as there is a container to start."""
    for container in survivors.machine.containers.values():
        if container.plan.id not in survivors.machine.tasks:
            survivors.machine.begin(container)


def break_store(survivors: Survivors) -> None:
    survivors.store.broken = "the disk is gone"


def mend_store(survivors: Survivors) -> None:
    survivors.store.broken = None


def cannot_be_archived(survivors: Survivors) -> bool:
    """It is stopped, all of it is still there, and a condition says why."""
    preserved_ = condition(survivors, "Preserved")
    return (
        in_phase("Stopped")(survivors)
        and preserved_ == ("False", "StoreUnavailable")
        and bool(survivors.machine.snapshots and survivors.machine.containers)
    )


def both(*acts: Act) -> Act:
    def act(survivors: Survivors) -> None:
        for each in acts:
            each(survivors)

    return act


def cleaned_up(count: int | None = 1) -> Goal:
    """No container, no snapshot, no network; the object says Removed, and its data is in an archive. `count`: of how many;
    None: however many."""

    def goal(survivors: Survivors) -> bool:
        runtime, machine = the(survivors), survivors.machine
        things = (machine.snapshots, machine.containers, machine.tasks, survivors.sandboxes.made)
        listed = sorted(facts.object_name for facts in survivors.cluster.archives.values())
        return (
            runtime is not None
            and runtime.status.phase == "Removed"
            and not any(things)
            and count in (None, len(listed))
            and runtime.status.last_archive in listed
            and runtime.status.expires_at is None
        )

    return goal


def answered(id_: str, outcome: str, code: str, goal: Goal) -> Goal:
    def reached(survivors: Survivors) -> bool:
        runtime = the(survivors)
        last = runtime.status.last_request if runtime is not None else None
        told = sum(
            1
            for row in survivors.tables.operations.values()
            if (row.op, row.source, row.outcome, row.error_code) == (Op.CLEANUP, "admin_cli", outcome, code)
        )
        return (
            last is not None
            and (last.id, last.outcome, last.code) == (id_, outcome, code)
            and told >= 1
            and goal(survivors)
        )

    return reached


EXPIRED = Stage(STOP, cleaned_up())
BACK = Stage(RUN, running_after(2))

CLEANUP_STORIES: tuple[Story, ...] = (
    Story("cleaned up when its time is over", (Stage(create(SHORT), running), EXPIRED, BACK), tried_from=1),
    Story(
        "cleaned up at once",
        (
            Stage(create(msgspec.structs.replace(SPEC, stopped_ttl="0s")), running),
            Stage(STOP, cleaned_up()),
            BACK,
            Stage(STOP, cleaned_up(2)),
        ),
        tried_from=1,
    ),
    Story(
        "never, until it is changed",
        (
            Stage(create(LONG), running),
            Stage(STOP, in_phase("Stopped")),
            Stage(edit(stopped_ttl="1s"), cleaned_up()),
        ),
        tried_from=2,
    ),
    Story(
        "ended by itself and cleaned up",
        (
            Stage(create(ONCE), running),
            Stage(process_crashes(0), cleaned_up()),
            Stage(STOP, cleaned_up()),
            BACK,
        ),
        tried_from=1,
    ),
    Story(
        "ended by itself, cleaned up, and changed",
        (
            Stage(create(ONCE), running),
            Stage(process_crashes(3), cleaned_up()),
            Stage(edit(args=("other",)), running_after(2)),
        ),
        tried_from=2,
    ),
    Story(
        "cleaned up by request",
        (
            START,
            Stage(request_cleanup("1"), answered("1", "failure", "conflict", running)),
            Stage(both(STOP, request_cleanup("2")), answered("2", "success", "", cleaned_up())),
            Stage(request_cleanup("3"), answered("3", "success", "replay_no_op", cleaned_up())),
            BACK,
        ),
        tried_from=1,
    ),
    Story(
        "cleaned up, and the journal lost",
        (Stage(create(NOTHING_OLD), running), EXPIRED, Stage(both(lose_journal, RUN), running_after(2), restarts=True)),
        tried_from=2,
    ),
    Story(
        "cleaned up, and the journal lost at rest",
        (
            Stage(create(SHORT), running),
            EXPIRED,
            Stage(lose_journal, cleaned_up(), restarts=True),
            BACK,
        ),
        tried_from=2,
    ),
    Story(
        "wanted again while it is archived",
        (Stage(create(SHORT), running), Stage(STOP, running_after(2), during="archives.export_half", interrupt=RUN)),
        varies=ABOUT_ARCHIVES,
        tried_from=1,
    ),
    Story(
        "wanted again while it is removed",
        (
            Stage(create(SHORT), running),
            Stage(STOP, running_after(2), during="engine.remove_workspace", interrupt=RUN),
        ),
        varies=ABOUT_ARCHIVES | {"objects"},
        tried_from=1,
    ),
    Story(
        "started by hand while it is archived",
        (
            Stage(create(SHORT), running),
            Stage(STOP, cleaned_up(None), during="archives.export_half", interrupt=start_by_hand),
            Stage(RUN, running_after(3)),
        ),
        varies=ABOUT_ARCHIVES,
        tried_from=1,
    ),
    Story(
        "started by hand before its clean-up is asked for",
        (
            Stage(create(LONG), running),
            Stage(STOP, in_phase("Stopped")),
            Stage(both(start_by_hand, request_cleanup("1")), answered("1", "failure", "conflict", in_phase("Stopped"))),
            Stage(request_cleanup("2"), answered("2", "success", "", cleaned_up())),
        ),
        tried_from=2,
    ),
    Story(
        "deleted while it is cleaned up",
        (
            Stage(create(SHORT), running),
            Stage(STOP, gone, during="archives.export_half", interrupt=delete),
            Stage(create(SHORT), running_after(2)),
        ),
        varies=ABOUT_ARCHIVES,
        tried_from=1,
    ),
    Story(
        "deleted after it was cleaned up, and brought back",
        (Stage(create(SHORT), running), EXPIRED, Stage(delete, preserved(1)), Stage(create(SHORT), running_after(2))),
        tried_from=2,
    ),
    Story(
        "cleaned up, the journal lost, and deleted",
        (Stage(create(SHORT), running), EXPIRED, Stage(both(lose_journal, delete), gone, restarts=True)),
        tried_from=2,
    ),
    Story(
        "purged after it was cleaned up",
        (Stage(create(SHORT), running), EXPIRED, Stage(delete_with(DeletionPolicy.PURGE), purged)),
        purged=True,
        tried_from=2,
    ),
    Story(
        "a store that is away for a while",
        (
            Stage(create(SHORT), running),
            Stage(both(break_store, STOP), cannot_be_archived),
            Stage(mend_store, cleaned_up()),
            BACK,
        ),
        tried_from=1,
    ),
    Story("removed twice", (START, Stage(REMOVE, cleaned_up()), BACK, Stage(REMOVE, cleaned_up(2))), tried_from=1),
    Story(
        "an earlier life's data comes first",
        (
            START,
            PRESERVE,
            Stage(create(SHORT), running_after(2)),
            Stage(STOP, cleaned_up(2)),
            Stage(RUN, running_after(3)),
        ),
        tried_from=3,
    ),
)
