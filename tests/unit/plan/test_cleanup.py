"""When what is stopped is cleaned up, what a request is answered with, and what a clean-up leaves behind."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from tests.property.model import archive_of
from tests.property.worlds import NODE, NOW, REF, Draw

from perdure.api import names
from perdure.api.conditions import Reason
from perdure.api.names import OperationId
from perdure.api.phases import Phase
from perdure.api.request import RequestId
from perdure.api.runtime import DesiredState, RequestStatus, Restore, RestorePolicy, Runtime, RuntimeSpec, RuntimeStatus
from perdure.plan.certainty import Absent, Present, Unknown
from perdure.plan.cleanup import CLOCK_ERROR_SECONDS
from perdure.plan.planner import plan
from perdure.plan.spec_hash import spec_mark
from perdure.plan.steps import (
    Answer,
    ArchiveWorkspace,
    Begin,
    Finish,
    Ground,
    Note,
    PrepareWorkspace,
    RecordPutAway,
    RemoveContainer,
    RemoveWorkspace,
    Step,
)
from perdure.plan.uptime import Uptime
from perdure.plan.world import (
    ArchiveFacts,
    Code,
    ContainerFacts,
    Freeze,
    Halted,
    ImageFacts,
    LedgerFacts,
    Observed,
    Op,
    OpenOperation,
    Outcome,
    PutAway,
    Record,
    SnapshotFacts,
    Source,
    TaskFacts,
    TaskState,
    Wanted,
    Workspace,
    World,
)

IMAGE = ImageFacts("example/image:1", "sha256:dd", Draw(1).image().chain_id)
KEY = REF.snapshot_key(1)
KEPT = archive_of(REF, 7, NODE, KEY, IMAGE)
STOPPED_AGO = 100.0
ALIVE = TaskFacts(TaskState.RUNNING, 42)
CLEANUP = OpenOperation(OperationId("operation"), Op.CLEANUP, Source.AUTO_TTL, NOW - 1, Phase.STOPPED)
SPEC = RuntimeSpec(image=IMAGE.name, command=("/bin/run",), desired_state=DesiredState.STOPPED, stopped_ttl="200s")
HALTED = Halted(Reason.COMPLETED, spec_mark(SPEC))


def world(
    *,
    request: str = "",
    task: TaskFacts | None = None,
    archived: ArchiveFacts | None = None,
    put_away: bool = False,
    container: bool = True,
    snapshot: bool = True,
    ledger: LedgerFacts | None = None,
    status: RuntimeStatus | None = None,
    record: Record | None = None,
    **spec: object,
) -> World:
    """A runtime that stopped a while ago. `put_away`: and was cleaned up since."""
    runtime: Runtime = msgspec.structs.replace(
        Draw(1).runtime(terminating=False),
        spec=msgspec.structs.replace(SPEC, **spec),
        annotations={names.ANNOTATION_REQUEST: request} if request else {},
        status=status or RuntimeStatus(),
        invalid=None,
    )
    workspace = Workspace(
        KEY, 1, IMAGE.name, IMAGE.digest, IMAGE.chain_id, prepared=True, ever_started=True, archived=archived
    )
    known = Record(
        ref=REF,
        newest_n=1,
        workspace=None if put_away else workspace,
        operations=1,
        numbered_from=NOW - 1000,
        phase=Phase.REMOVED if put_away else Phase.STOPPED,
        stopped_at=NOW - STOPPED_AGO,
        stopped_up=Uptime("boot", 1000.0),
        put_away=PutAway(KEPT, Source.AUTO_TTL) if put_away else None,
    )
    there = snapshot and not put_away and record is None
    facts = SnapshotFacts(KEY, 1, IMAGE.chain_id, IMAGE.name, IMAGE.digest, None)
    made = ContainerFacts(REF.container_id, KEY, spec_mark(runtime.spec))
    observed = Observed(
        container=Present(made) if container and there else Absent(),
        task=Present(task) if task is not None else Absent(),
        snapshots=Present((facts,) if there else ()),
        sandbox=Absent(),
        image=Present(IMAGE),
        ledger=Present(ledger) if ledger is not None else Unknown("not asked"),
    )
    return World(REF, Wanted(runtime), observed, record or known, uptime=Uptime("boot", 1000.0 + STOPPED_AGO))


def steps(seen: World, now: float = NOW) -> tuple[Step, ...]:
    return plan(seen, now).steps


def only(seen: World, now: float = NOW) -> Step:
    (step,) = steps(seen, now)
    return step


def under_way(seen: World) -> World:
    return replace(seen, record=replace(seen.record, operation=CLEANUP))


def later(seen: World, seconds: float) -> World:
    return replace(seen, uptime=Uptime("boot", 1000.0 + STOPPED_AGO + seconds))


def status_of(seen: World) -> RuntimeStatus:
    status = plan(seen, NOW).status
    assert status is not None
    return status


# ---------------------------------------------------------------------------------------------- by time


def test_until_its_time_is_over_it_says_when_and_is_left_alone() -> None:
    made = plan(world(), NOW)
    assert made.steps == ()
    assert made.settled
    assert made.wake_at == NOW + 100
    assert made.status is not None
    assert made.status.phase == Phase.STOPPED
    assert made.status.expires_at == "2027-01-15T08:01:40Z"


def test_when_its_time_is_over_the_intent_comes_first_and_alone() -> None:
    assert only(later(world(), 100), NOW + 100) == Begin(Op.CLEANUP, Source.AUTO_TTL, True, Phase.STOPPED)


def test_never_is_never() -> None:
    made = plan(later(world(stopped_ttl="Never"), 1e9), NOW + 1e9)
    assert (made.steps, made.wake_at) == ((), None)
    assert made.status is not None
    assert made.status.expires_at is None


def test_at_once_is_at_once() -> None:
    assert isinstance(only(world(stopped_ttl="0s")), Begin)


def test_a_time_that_is_taken_back_ends_a_clean_up_that_has_removed_nothing() -> None:
    made = plan(under_way(world(stopped_ttl="Never", archived=KEPT)), NOW)
    assert [step.outcome for step in made.steps if isinstance(step, Finish)] == [Outcome.SUPERSEDED]


def test_a_wall_clock_that_is_set_makes_nothing_expire() -> None:
    made = plan(later(world(), 10), NOW + 5000)
    assert (made.steps, made.wake_at) == ((), NOW + 5000 + 90)


def test_after_a_reboot_the_wall_clock_is_given_some_minutes_to_be_wrong() -> None:
    rebooted = replace(world(), uptime=Uptime("another boot", 1.0))
    assert steps(rebooted, NOW + 100 + CLOCK_ERROR_SECONDS - 1) == ()
    assert isinstance(only(rebooted, NOW + 100 + CLOCK_ERROR_SECONDS), Begin)


def test_where_nobody_remembers_when_it_stopped_the_time_is_counted_from_now() -> None:
    seen = world()
    step = only(replace(seen, record=replace(seen.record, stopped_at=None, stopped_up=None)))
    assert isinstance(step, Note)
    assert (step.record.stopped_at, step.record.stopped_up) == (NOW, seen.uptime)


def test_nothing_is_cleaned_up_under_a_freeze() -> None:
    frozen = replace(world(stopped_ttl="0s"), freeze=Freeze(Reason.IDENTITY_CHANGED, "look first"))
    made = plan(frozen, NOW)
    assert made.steps == ()
    assert made.waiting is not None
    assert made.waiting.reason is Reason.IDENTITY_CHANGED


# ---------------------------------------------------------------------------------------------- the way


def test_archived_first_then_the_container_then_the_snapshot_then_it_is_told() -> None:
    assert only(under_way(world(stopped_ttl="0s"))) == ArchiveWorkspace(KEY)
    assert only(under_way(world(stopped_ttl="0s", archived=KEPT))) == RemoveContainer(REF.container_id)
    bare = under_way(world(stopped_ttl="0s", archived=KEPT, container=False))
    assert only(bare) == RemoveWorkspace(KEY, Ground.ARCHIVED)
    gone = under_way(world(stopped_ttl="0s", archived=KEPT, snapshot=False))
    assert only(gone) == RecordPutAway(PutAway(KEPT, Source.AUTO_TTL))
    done = only(under_way(world(put_away=True)))
    assert done == Finish(Outcome.SUCCESS, Phase.REMOVED, "its data is kept as archive br-hermes-7")


def test_a_missing_snapshot_without_an_archive_of_it_is_still_missing() -> None:
    made = plan(under_way(world(stopped_ttl="0s", snapshot=False)), NOW)
    assert made.steps == ()
    assert made.waiting is not None
    assert made.waiting.reason is Reason.DATA_MISSING


def test_an_archive_of_another_snapshot_is_no_ground() -> None:
    other = replace(KEPT, snapshot_key=REF.snapshot_key(2))
    assert only(under_way(world(stopped_ttl="0s", archived=other))) == ArchiveWorkspace(KEY)


def test_a_task_that_somebody_started_meanwhile_makes_the_archive_old_and_ends_the_clean_up() -> None:
    touched = only(under_way(world(stopped_ttl="0s", archived=KEPT, task=ALIVE)))
    assert isinstance(touched, Note)
    assert touched.record.workspace is not None
    assert touched.record.workspace.archived is None
    ended = only(under_way(world(stopped_ttl="0s", task=ALIVE)))
    assert isinstance(ended, Finish)
    assert (ended.outcome, ended.code) == (Outcome.FAILURE, Code.CONFLICT)


# ---------------------------------------------------------------------------------------------- by request


@pytest.mark.parametrize("state", [DesiredState.RUNNING, DesiredState.STOPPED])
def test_what_runs_is_a_conflict_and_nothing_is_touched(state: DesiredState) -> None:
    """Stopped, and yet a task runs that we did not start: somebody did, by hand."""
    step = only(world(request="cleanup/1", task=ALIVE, desired_state=state))
    assert isinstance(step, Answer)
    assert (step.answer.outcome, step.answer.code) == (Outcome.FAILURE, Code.CONFLICT)
    assert "stop it first" in step.answer.message


def test_what_is_stopped_is_cleaned_up_for_whoever_asks() -> None:
    begun = only(world(request="cleanup/1", stopped_ttl="Never"))
    assert begun == Begin(Op.CLEANUP, Source.ADMIN_CLI, True, Phase.STOPPED, RequestId("1"))


def test_what_was_removed_before_is_a_success() -> None:
    step = only(world(request="cleanup/1", put_away=True))
    assert isinstance(step, Answer)
    assert (step.answer.outcome, step.answer.code) == (Outcome.SUCCESS, Code.REPLAY_NO_OP)
    assert "br-hermes-7" in step.answer.message


def test_a_request_that_nobody_understands_is_answered_too() -> None:
    step = only(world(request="shrink/1", task=ALIVE, desired_state=DesiredState.RUNNING))
    assert isinstance(step, Answer)
    assert step.answer.code is Code.INVALID_REQUEST


def test_a_request_that_the_status_shows_as_answered_is_not_done_again_without_the_journal() -> None:
    shown = RuntimeStatus(last_request=RequestStatus(id="1", outcome="success"))
    seen = world(request="cleanup/1", status=shown)
    assert steps(seen) == ()
    assert status_of(seen).last_request == shown.last_request, "else it would be asked again at the next look"


# ---------------------------------------------------------------------------------------------- afterwards


def test_what_was_cleaned_up_stays_so_and_says_why() -> None:
    made = plan(world(put_away=True), NOW)
    assert (made.steps, made.wake_at, made.settled) == ((), None, True)
    status = status_of(world(put_away=True))
    assert (status.phase, status.last_archive, status.expires_at) == (Phase.REMOVED, "br-hermes-7", None)
    assert [c.reason for c in status.conditions if c.type == "Ready"] == [Reason.EXPIRED]


def test_what_ended_by_itself_and_was_cleaned_up_is_not_run_again() -> None:
    seen = world(put_away=True, desired_state=DesiredState.RUNNING)
    made = plan(replace(seen, record=replace(seen.record, halted=HALTED)), NOW)
    assert (made.steps, made.settled) == ((), True)


@pytest.mark.parametrize("policy", [RestorePolicy.NONE, RestorePolicy.LATEST])
def test_running_brings_back_exactly_what_was_put_away(policy: RestorePolicy) -> None:
    """Without the ledger, and whatever the spec says about what a new runtime begins with."""
    made = steps(world(put_away=True, desired_state=DesiredState.RUNNING, restore=Restore(policy=policy)))
    (prepare,) = [step for step in made if isinstance(step, PrepareWorkspace)]
    assert (prepare.gate, prepare.key) == (KEPT, REF.snapshot_key(2))


def test_the_ledger_knows_what_was_put_away_when_the_journal_does_not() -> None:
    ledger = LedgerFacts(data_seen=KEY, put_away=KEPT)
    step = only(world(record=Record(ref=REF), ledger=ledger, desired_state=DesiredState.RUNNING))
    assert isinstance(step, Note)
    assert step.record.put_away == PutAway(KEPT, Source.AUTO_RECONCILE)
    assert step.record.newest_n == 1


def test_a_status_that_shows_newer_data_than_was_put_away_is_believed() -> None:
    ledger = LedgerFacts(data_seen=KEY, put_away=KEPT)
    newer = RuntimeStatus(snapshot_key=REF.snapshot_key(2))
    seen = world(record=Record(ref=REF), ledger=ledger, status=newer, desired_state=DesiredState.RUNNING)
    made = plan(seen, NOW)
    assert made.steps == ()
    assert made.waiting is not None
    assert made.waiting.reason is Reason.DATA_MISSING


def test_without_journal_and_ledger_nothing_starts_where_the_status_shows_an_archive() -> None:
    shown = RuntimeStatus(last_archive="br-hermes-7")
    nothing_old = Restore(policy=RestorePolicy.NONE)
    seen = world(record=Record(ref=REF), status=shown, restore=nothing_old, desired_state=DesiredState.RUNNING)
    made = plan(seen, NOW)
    assert made.steps == ()
    assert made.waiting is not None
    assert made.waiting.reason is Reason.LEDGER_UNAVAILABLE
