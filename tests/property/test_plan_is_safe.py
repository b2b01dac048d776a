"""What holds of every plan, made from any world: it is one, it is the same again, and it destroys nothing unproven."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from hypothesis import given
from tests.property.worlds import NOW, Case, cases

from perdure.api.phases import Phase, may_follow
from perdure.plan.certainty import Absent, Present, Unknown
from perdure.plan.operations import DURABLE
from perdure.plan.planner import plan
from perdure.plan.steps import (
    DESTRUCTIVE,
    Answer,
    ArchiveWorkspace,
    Begin,
    Dispose,
    Finish,
    Forget,
    Ground,
    KillTask,
    Note,
    Plan,
    PrepareWorkspace,
    PurgeArchives,
    RecordPutAway,
    RemoveWorkspace,
    RestoreWorkspace,
    StartTask,
    StopTask,
)
from perdure.plan.world import (
    Code,
    Gone,
    LedgerFacts,
    Observed,
    Op,
    Source,
    TaskState,
    Terminating,
    Unseen,
    Wanted,
    World,
)

S = TypeVar("S")
AWAY = Unknown("the engine did not answer")


def found(drawn: Sequence[Case], kind: type[S]) -> Iterator[tuple[World, Plan, S]]:
    """Each step of a kind, with the plan that it is in and the world that the plan was made from."""
    for case in drawn:
        world, made = case.world, case.plan
        for step in made.steps:
            if isinstance(step, kind):
                yield world, made, step


def destructive(made: Plan) -> list[RemoveWorkspace | PurgeArchives]:
    return [step for step in made.steps if isinstance(step, DESTRUCTIVE)]


def operation_of(world: World, made: Plan) -> Op | None:
    """The operation under which a plan's effects run: a `Begin` is done before them, and they wait for its success."""
    begun = [step.op for step in made.steps if isinstance(step, Begin)]
    if begun:
        return begun[0]
    return world.record.operation.op if world.record.operation is not None else None


def no_snapshot(observed: Observed) -> bool:
    return observed.snapshots in (Absent(), Present(()))


@given(cases)
def test_every_world_has_a_plan_and_always_the_same(drawn: Sequence[Case]) -> None:
    for case in drawn:
        world, made = case.world, case.plan
        assert made == plan(world, NOW)
        assert not (made.steps and made.waiting)
        if isinstance(world.desired, Gone | Unseen):
            assert made.status is None
        elif made.status is not None:
            assert made.status.phase is not None
            assert made.status.observed_generation == world.desired.runtime.generation


@given(cases)
def test_an_end_of_an_operation_stands_alone_and_a_beginning_first(drawn: Sequence[Case]) -> None:
    for case in drawn:
        world, made = case.world, case.plan
        if any(isinstance(step, Finish) for step in made.steps):
            assert len(made.steps) == 1
            assert world.record.operation is not None
        for step in made.steps[1:]:
            assert not isinstance(step, Begin | Note)


@pytest.mark.parametrize("thing", ["container", "task", "snapshots"])
@given(cases)
def test_nothing_is_done_while_the_engine_does_not_answer(thing: str, drawn: Sequence[Case]) -> None:
    for world in (case.world for case in drawn):
        if isinstance(world.observed.container, Unknown):
            continue
        away: dict[str, Any] = {thing: AWAY}
        blind = replace(world, observed=replace(world.observed, **away))
        assert [step for step in plan(blind, NOW).steps if not isinstance(step, Note)] == []


@given(cases)
def test_only_an_operation_that_destroys_may_destroy(drawn: Sequence[Case]) -> None:
    for case in drawn:
        world, made = case.world, case.plan
        if destructive(made):
            assert operation_of(world, made) in DURABLE


@given(cases)
def test_the_intent_of_an_operation_that_destroys_is_committed_in_the_ledger(drawn: Sequence[Case]) -> None:
    for _, _, step in found(drawn, Begin):
        assert step.durable == (step.op in DURABLE)


@given(cases)
def test_a_snapshot_is_removed_only_on_a_ground(drawn: Sequence[Case]) -> None:
    for world, made, step in found(drawn, RemoveWorkspace):
        workspace, snapshots = world.record.workspace, world.observed.snapshots
        assert isinstance(snapshots, Present)
        assert step.key in {snapshot.key for snapshot in snapshots.it}
        if step.ground is Ground.PURGE:
            assert operation_of(world, made) is Op.PURGE
            continue
        assert workspace is not None
        assert workspace.key == step.key
        if step.ground is Ground.ARCHIVED:
            assert workspace.archived is not None
            assert workspace.archived.snapshot_key == step.key
        else:
            assert not workspace.ever_started


@given(cases)
def test_archives_are_purged_only_in_a_purge(drawn: Sequence[Case]) -> None:
    for world, made, _ in found(drawn, PurgeArchives):
        assert operation_of(world, made) is Op.PURGE


@given(cases)
def test_nothing_is_destroyed_under_a_task_or_a_container(drawn: Sequence[Case]) -> None:
    for case in drawn:
        if destructive(case.plan):
            world = case.world
            assert world.observed.task == Absent()
            assert world.observed.container == Absent()


@given(cases)
def test_nothing_is_destroyed_or_archived_under_a_freeze(drawn: Sequence[Case]) -> None:
    for case in drawn:
        if case.world.freeze is not None:
            assert not destructive(case.plan)
            assert not any(isinstance(step, ArchiveWorkspace) for step in case.plan.steps)


@given(cases)
def test_nothing_is_destroyed_for_an_unseen_object(drawn: Sequence[Case]) -> None:
    for case in drawn:
        if isinstance(case.world.desired, Unseen):
            assert not destructive(case.plan)


@given(cases)
def test_a_live_object_loses_its_snapshot_only_in_a_clean_up_and_to_an_archive(drawn: Sequence[Case]) -> None:
    for case in drawn:
        if not isinstance(case.world.desired, Wanted) or not destructive(case.plan):
            continue
        (step,) = destructive(case.plan)
        spec, record = case.world.desired.runtime.spec, case.world.record
        assert isinstance(step, RemoveWorkspace)
        assert step.ground is Ground.ARCHIVED
        assert operation_of(case.world, case.plan) is Op.CLEANUP
        assert not record.running
        assert spec.desired_state != "Running" or record.halted is not None


@given(cases)
def test_a_clean_up_begins_only_for_a_reason(drawn: Sequence[Case]) -> None:
    for world, _, step in found(drawn, Begin):
        if step.op is not Op.CLEANUP or not isinstance(world.desired, Wanted):
            continue
        runtime, record = world.desired.runtime, world.record
        match step.source:
            case Source.AUTO_TTL:
                assert record.stopped_at is not None
                assert runtime.spec.stopped_ttl_seconds is not None
                assert record.stopped_at + runtime.spec.stopped_ttl_seconds <= NOW
            case Source.ADMIN_CLI:
                assert runtime.request is not None
                assert runtime.request.id == step.request
                assert record.last_request is None or record.last_request.id != step.request
            case _:
                assert runtime.spec.desired_state == "Removed"


@given(cases)
def test_a_request_is_answered_once_and_with_nothing_else(drawn: Sequence[Case]) -> None:
    for world, made, step in found(drawn, Answer):
        assert len(made.steps) == 1
        assert world.record.last_request is None or world.record.last_request.id != step.answer.id
        if step.answer.code is Code.REPLAY_NO_OP:
            assert world.observed.task == Absent()
            assert not isinstance(world.observed.container, Present)


@given(cases)
def test_data_is_put_away_only_in_a_verified_archive_of_exactly_what_is_gone(drawn: Sequence[Case]) -> None:
    for world, _, step in found(drawn, RecordPutAway):
        workspace, snapshots = world.record.workspace, world.observed.snapshots
        assert workspace is not None
        assert workspace.archived == step.put_away.archive
        assert step.put_away.archive.snapshot_key == workspace.key
        assert not isinstance(snapshots, Unknown)
        assert isinstance(snapshots, Absent) or workspace.key not in {snapshot.key for snapshot in snapshots.it}


@given(cases)
def test_absence_of_an_object_whose_deletion_nobody_saw_means_nothing(drawn: Sequence[Case]) -> None:
    for world in (not_given_up(case.world) for case in drawn):
        unseen = replace(world, record=replace(world.record, deletion_seen=False))
        assert plan(replace(unseen, desired=Gone()), NOW) == Plan()
        assert plan(replace(world, desired=Unseen("away")), NOW) == Plan()


def not_given_up(world: World) -> World:
    """Released by force neither on record nor according to the ledger."""
    ledger = world.observed.ledger
    if isinstance(ledger, Present):
        ledger = Present(replace(ledger.it, force_released=False))
    record = replace(world.record, force_released=False)
    return replace(world, record=record, observed=replace(world.observed, ledger=ledger))


@given(cases)
def test_what_was_given_up_unseen_is_stopped_at_most_and_keeps_its_data(drawn: Sequence[Case]) -> None:
    for world in (not_given_up(case.world) for case in drawn):
        record = replace(world.record, deletion_seen=False, released=False)
        facts = world.observed.ledger.it if isinstance(world.observed.ledger, Present) else LedgerFacts()
        ledger = Present(replace(facts, force_released=True, released=False))
        for given_up, told in ((record, ledger), (replace(record, force_released=True), world.observed.ledger)):
            gone = replace(world, desired=Gone(), record=given_up, observed=replace(world.observed, ledger=told))
            for step in plan(gone, NOW).steps:
                assert not isinstance(step, RemoveWorkspace | PurgeArchives | StartTask | Dispose)
                assert not (isinstance(step, Finish) and step.release)
                assert not isinstance(step, Forget) or no_snapshot(world.observed)


@given(cases)
def test_a_confirmed_absence_drops_a_record_at_most_and_only_one_with_nothing_behind_it(drawn: Sequence[Case]) -> None:
    for world in (not_given_up(case.world) for case in drawn):
        record, seen = replace(world.record, deletion_seen=False), world.observed
        steps = plan(replace(world, record=record, desired=Gone(confirmed=True)), NOW).steps
        assert all(isinstance(step, Dispose) or (isinstance(step, Finish) and not step.release) for step in steps)
        if steps:
            assert world.freeze is None
            assert (seen.container, seen.task, seen.sandbox) == (Absent(), Absent(), Absent())
            assert no_snapshot(seen)
            assert not record.running
            assert record.workspace is None or not record.workspace.ever_started
        if steps and not record.released:
            assert isinstance(seen.ledger, Present)
            kept = seen.ledger.it.put_away
            assert seen.ledger.it.released or seen.ledger.it.data_seen is None or kept is not None
            assert record.put_away is None or seen.ledger.it.released or kept is not None


@given(cases)
def test_a_task_starts_only_on_the_right_snapshot_and_behind_an_open_gate(drawn: Sequence[Case]) -> None:
    for world, _, step in found(drawn, StartTask):
        workspace, snapshots, task = world.record.workspace, world.observed.snapshots, world.observed.task
        assert workspace is not None
        assert workspace.gate is None
        assert not workspace.removal_announced
        assert workspace.key == step.key
        assert isinstance(snapshots, Present)
        (snapshot,) = (snapshot for snapshot in snapshots.it if snapshot.key == workspace.key)
        assert snapshot.chain_id == workspace.chain_id
        assert snapshot.gate is None
        assert not world.record.released
        assert task == Absent() or (isinstance(task, Present) and task.it.state is TaskState.CREATED)


@given(cases)
def test_a_task_starts_only_for_an_object_that_is_wanted_running(drawn: Sequence[Case]) -> None:
    for world, _, _ in found(drawn, StartTask):
        assert isinstance(world.desired, Wanted)
        assert world.desired.runtime.spec.desired_state == "Running"
        assert world.desired.runtime.invalid is None


@given(cases)
def test_a_workspace_is_made_only_where_nothing_ever_showed_data(drawn: Sequence[Case]) -> None:
    for world, _, step in found(drawn, PrepareWorkspace):
        assert isinstance(world.desired, Wanted)
        assert world.desired.runtime.status.snapshot_key is None or world.record.put_away is not None
        assert world.record.workspace is None
        assert no_snapshot(world.observed)
        assert step.n > world.record.newest_n
        if world.record.put_away is not None:
            assert step.gate == world.record.put_away.archive
            continue
        ledger, restore = world.observed.ledger, world.desired.runtime.spec.restore
        if not isinstance(ledger, Present):
            assert restore.policy == "None"
            continue
        assert ledger.it.data_seen is None
        assert not ledger.it.released
        if step.gate is None and restore.policy != "None":
            assert restore.policy == "Latest"
            assert ledger.it.latest is None
            assert ledger.it.unarchived == ()


@given(cases)
def test_a_record_that_showed_data_is_never_dropped(drawn: Sequence[Case]) -> None:
    for world, _, step in found(drawn, Note):
        workspace = world.record.workspace
        if workspace is not None and step.record.workspace is None:
            assert not workspace.prepared
            assert not workspace.ever_started
            snapshots = world.observed.snapshots
            assert not isinstance(snapshots, Present) or workspace.key not in {found.key for found in snapshots.it}
        if workspace is not None and step.record.workspace is not None:
            assert step.record.workspace.key == workspace.key
            assert step.record.workspace.gate == workspace.gate
            assert step.record.workspace.ever_started >= workspace.ever_started


@given(cases)
def test_a_deletion_shows_only_phases_that_may_follow_one_another(drawn: Sequence[Case]) -> None:
    for case in drawn:
        world, status = case.world, case.plan.status
        if not isinstance(world.desired, Terminating) or status is None or status.phase is None:
            continue
        if not world.record.released and (world.record.deletion_seen or case.plan.waiting is not None):
            assert may_follow(Phase.PRESERVING, Phase(status.phase)) or may_follow(Phase.PURGING, Phase(status.phase))


@given(cases)
def test_a_restore_writes_only_behind_its_gate(drawn: Sequence[Case]) -> None:
    for world, _, step in found(drawn, RestoreWorkspace):
        workspace = world.record.workspace
        assert workspace is not None
        assert workspace.gate == step.archive
        assert workspace.key == step.key
        assert not workspace.ever_started
        assert world.observed.task == Absent()


@given(cases)
def test_a_life_ends_in_the_ledger_only_when_its_data_is_dealt_with(drawn: Sequence[Case]) -> None:
    for world, made, step in found(drawn, Finish):
        if not step.release:
            continue
        workspace, ledger, op = world.record.workspace, world.observed.ledger, operation_of(world, made)
        assert world.freeze is None
        assert op in DURABLE
        assert no_snapshot(world.observed)
        assert world.observed.task == Absent()
        if op is Op.PURGE:
            assert isinstance(ledger, Present)
            assert ledger.it.purgeable == ()
        elif world.record.put_away is not None and (workspace is None or not workspace.ever_started):
            assert world.record.put_away.archive.snapshot_key != ""
        elif workspace is None or not workspace.prepared:
            assert isinstance(ledger, Present)
            assert ledger.it.data_seen is None or ledger.it.released or ledger.it.put_away is not None
        elif workspace.ever_started:
            assert workspace.archived is not None
            assert workspace.archived.snapshot_key == workspace.key


@given(cases)
def test_nothing_is_killed_that_was_not_told_to_stop_in_time(drawn: Sequence[Case]) -> None:
    for world, _, _ in found(drawn, KillTask):
        task, asked = world.observed.task, world.record.stop_asked
        assert isinstance(task, Present)
        assert asked is not None
        assert asked.pid == task.it.pid
        assert world.uptime is None or world.uptime.boot == asked.at.boot
        assert not isinstance(world.desired, Unseen)


@given(cases)
def test_the_stop_signal_is_sent_to_one_process_once(drawn: Sequence[Case]) -> None:
    for world, _, step in found(drawn, StopTask):
        asked, uptime = world.record.stop_asked, world.uptime
        assert asked is None or asked.pid != step.pid or (uptime is not None and uptime.boot != asked.at.boot)
