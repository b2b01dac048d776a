"""Stories of the crash matrix about the clean-up of what is stopped: by time, by request, by wish; and what may come
between."""

from __future__ import annotations

import msgspec
from tests.crash.matrix import ABOUT_ARCHIVES, Act, Goal, Stage, Story
from tests.crash.plant import GRACE_SECONDS, Survivors, When
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
from tests.fakes.ledger import LeaseEntry

from perdure.api import names
from perdure.api.names import NodeId
from perdure.api.request import RequestId, Verb, write_request
from perdure.api.runtime import DeletionPolicy, DesiredState, RestartPolicy, Restore, RestorePolicy
from perdure.plan.world import Op

SHORT = msgspec.structs.replace(SPEC, stopped_ttl="5s")
ONCE = msgspec.structs.replace(SHORT, restart_policy=RestartPolicy.NEVER)
LONG = msgspec.structs.replace(SPEC, stopped_ttl="Never")
NOTHING_OLD = msgspec.structs.replace(SHORT, restore=Restore(policy=RestorePolicy.NONE))

HOUR = 3600.0
MOST_KILLS = 2
"""In one case."""

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


def run_unseen(survivors: Survivors) -> None:
    """With the engine's own tool: it writes, ends and is deleted before anybody looks."""
    start_by_hand(survivors)
    survivors.machine.tick()
    survivors.machine.lose_tasks()


def run_unseen_and_die(survivors: Survivors) -> None:
    run_unseen(survivors)
    if survivors.process is not None:
        survivors.process.die()


def break_store(survivors: Survivors) -> None:
    survivors.store.broken = "the disk is gone"


def mend_store(survivors: Survivors) -> None:
    survivors.store.broken = None


def set_clock(by: float) -> Act:
    def act(survivors: Survivors) -> None:
        survivors.wall_error += by

    return act


def cannot_be_archived(survivors: Survivors) -> bool:
    """It is stopped, all of it is still there, and a condition says why, as does the ledger."""
    preserved_ = condition(survivors, "Preserved")
    told = {row.error_code for row in survivors.tables.operations.values() if row.finished_at is None}
    return (
        in_phase("Stopped")(survivors)
        and preserved_ == ("False", "StoreUnavailable")
        and told == {"StoreUnavailable"}
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


def lose_journal_and_die(survivors: Survivors) -> None:
    lose_journal(survivors)
    if survivors.process is not None:
        survivors.process.die()


def vanish(survivors: Survivors) -> None:
    """The object is gone from one moment to the next, and nobody was seen deleting it: etcd was put back."""
    if KEY in survivors.cluster.runtimes:
        survivors.cluster.remove(survivors.cluster.runtimes[KEY])


def disposed(survivors: Survivors) -> bool:
    """Nothing is remembered of it here; the ledger tells why, and its data is still in its archive."""
    told = [row for row in survivors.tables.operations.values() if row.op is Op.DISPOSE]
    alive = [entry for entry in survivors.tables.archives.values() if entry.state == "verified"]
    return (
        not survivors.disk.records
        and [(row.source, row.outcome) for row in told] == [("auto_reconcile", "success")]
        and not any(entry.released for entry in survivors.tables.runtimes.values())
        and len(alive) == 1
    )


def runs_on_as_an_orphan(survivors: Survivors) -> bool:
    machine = survivors.machine
    patience = survivors.clock() > 3 * GRACE_SECONDS
    return patience and len(machine.tasks) == len(machine.snapshots) == len(survivors.disk.records) == 1


def somebody_else_is_at_work(survivors: Survivors) -> None:
    """Another node holds the lease of this runtime, and dies with it."""
    runtime, tables = survivors.cluster.runtimes[KEY], survivors.tables
    tables.fence += 1
    tables.leases[runtime.uid] = LeaseEntry(NodeId("node-2"), "theirs", tables.fence, survivors.clock() + 60.0)


def theirs_runs_out(survivors: Survivors) -> None:
    for lease in survivors.tables.leases.values():
        lease.expires_at = min(lease.expires_at, survivors.clock())


def skipped_then(goal: Goal) -> Goal:
    """A sweep that found somebody else at work says so once, as no failure, and comes again."""

    def reached(survivors: Survivors) -> bool:
        rows = survivors.tables.operations.values()
        told = [row.outcome for row in rows if (row.op, row.error_code) == (Op.CLEANUP, "skipped_busy")]
        failed = [row for row in rows if (row.op, row.outcome) == (Op.CLEANUP, "failure")]
        return 1 <= len(told) <= MOST_KILLS + 1 and set(told) == {"superseded"} and not failed and goal(survivors)

    return reached


BY_HAND: tuple[tuple[str, str, When, Act], ...] = (
    ("started by hand", "engine.remove_container", "before", start_by_hand),
    ("run unseen", "engine.remove_container", "before", run_unseen),
    ("run unseen with the agent killed", "engine.remove_container", "before", run_unseen_and_die),
    ("run unseen with the agent killed", "archives.export", "after", run_unseen_and_die),
)
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
    *(
        Story(
            f"{what} in its deletion, {when} {call}",
            (
                Stage(create(LONG), running),
                Stage(STOP, in_phase("Stopped")),
                Stage(delete, preserved(None), during=call, when=when, interrupt=interrupt),
                Stage(create(), running_after(3)),
            ),
            varies=ABOUT_ARCHIVES,
            tried_from=2,
        )
        for what, call, when, interrupt in BY_HAND
    ),
    *(
        Story(
            f"{what} in its clean-up, {when} {call}",
            (
                Stage(create(SHORT), running),
                Stage(STOP, cleaned_up(None), during=call, when=when, interrupt=interrupt),
                Stage(RUN, running_after(3)),
            ),
            varies=ABOUT_ARCHIVES,
            tried_from=1,
        )
        for what, call, when, interrupt in BY_HAND
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
    Story(
        "cleaned up, vanished, disposed of, and created anew",
        (Stage(create(SHORT), running), EXPIRED, Stage(vanish, disposed), Stage(create(SHORT), running_after(2))),
        tried_from=2,
    ),
    Story("vanished while it runs", (START, Stage(vanish, runs_on_as_an_orphan))),
    Story(
        "somebody else is at work when its time is over",
        (Stage(create(SHORT), running), Stage(both(somebody_else_is_at_work, STOP), skipped_then(cleaned_up())), BACK),
        tried_from=1,
    ),
    Story(
        "asked for while somebody else is at work",
        (
            Stage(create(LONG), running),
            Stage(STOP, in_phase("Stopped")),
            Stage(
                both(somebody_else_is_at_work, request_cleanup("1")),
                answered("1", "failure", "conflict", in_phase("Stopped")),
            ),
            Stage(request_cleanup("2"), answered("2", "failure", "conflict", in_phase("Stopped"))),
            Stage(theirs_runs_out, in_phase("Stopped")),
            Stage(request_cleanup("3"), answered("3", "success", "", cleaned_up())),
        ),
        tried_from=2,
    ),
    Story(
        "the journal is lost right after the layer was removed",
        (
            Stage(create(NOTHING_OLD), running),
            Stage(STOP, cleaned_up(), during="engine.remove_workspace", when="after", interrupt=lose_journal_and_die),
            BACK,
        ),
        varies=ABOUT_ARCHIVES | {"records"},
        tried_from=1,
    ),
    Story(
        "the journal is lost right before the layer is removed",
        (
            Stage(create(NOTHING_OLD), running),
            Stage(
                STOP, cleaned_up(None), during="engine.remove_workspace", when="before", interrupt=lose_journal_and_die
            ),
            BACK,
        ),
        varies=ABOUT_ARCHIVES | {"records"},
        tried_from=1,
    ),
    Story(
        "the journal is lost right before the layer is removed, and it is wanted again",
        (
            Stage(create(NOTHING_OLD), running),
            Stage(
                STOP,
                running_after(2),
                during="engine.remove_workspace",
                when="before",
                interrupt=both(RUN, lose_journal_and_die),
            ),
            Stage(process_crashes(), running_after(3)),
        ),
        varies=ABOUT_ARCHIVES | {"records", "objects"},
        tried_from=1,
    ),
    Story(
        "the journal is lost right after the layer was removed in a deletion",
        (
            START,
            Stage(delete, gone, during="engine.remove_workspace", when="after", interrupt=lose_journal_and_die),
            Stage(create(), running_after(2)),
        ),
        varies=ABOUT_ARCHIVES,
        tried_from=1,
    ),
    *(
        Story(
            f"the clock is set {'back' if by < 0 else 'forward'} by an hour between a crash and the restart",
            (
                Stage(create(), running),
                Stage(process_crashes(), running_after(2)),
                Stage(process_crashes(), running_after(3)),
                Stage(
                    process_crashes(),
                    running_after(4),
                    during="engine.delete_task",
                    when="after",
                    interrupt=set_clock(by),
                ),
            ),
            tried_from=3,
        )
        for by in (-HOUR, HOUR)
    ),
    *(
        Story(
            f"the clock is set {'back' if by < 0 else 'forward'} by an hour while a store is away",
            (
                START,
                Stage(both(break_store, REMOVE), cannot_be_archived),
                Stage(both(set_clock(by), mend_store), cleaned_up()),
                BACK,
            ),
            tried_from=1,
        )
        for by in (-HOUR, HOUR)
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
