"""What people read in a status: ends of processes, moments, conditions that follow from the record, the gate."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from tests.property.worlds import NOW, REF, Draw

from perdure.api.conditions import ConditionType, Reason, Truth
from perdure.api.phases import Phase
from perdure.api.runtime import Condition, LastExit, Runtime, RuntimeStatus
from perdure.plan.certainty import Absent, Present, Unknown
from perdure.plan.operations import operation_id
from perdure.plan.view import StatusDraft, archive_name, last_exit, stamp
from perdure.plan.world import (
    ContainerFacts,
    Exit,
    Observed,
    Record,
    SandboxFacts,
    Wanted,
    World,
)

ARCHIVE = replace(Draw(1).archive(), sequence=7, object_name="")
WORKSPACE = replace(Draw(1).workspace(), prepared=True, gate=None, restored_from=None, ever_started=True, archived=None)
RUNTIME = Draw(1).runtime(terminating=False)


def draft(record: Record, observed: Observed | None = None, runtime: Runtime = RUNTIME) -> StatusDraft:
    return StatusDraft(World(REF, Wanted(runtime), observed or Observed(), record), runtime)


def with_workspace(**changes: object) -> Record:
    return Record(ref=REF, workspace=replace(WORKSPACE, **changes))  # type: ignore[arg-type]


def condition(status: RuntimeStatus, type_: ConditionType) -> Condition | None:
    return next((found for found in status.conditions if found.type == type_), None)


def said(status: RuntimeStatus, type_: ConditionType) -> tuple[str, str, str] | None:
    found = condition(status, type_)
    return (found.status, found.reason, found.message) if found is not None else None


# ---------------------------------------------------------------------------------------------- ends and moments


@pytest.mark.parametrize(
    ("exit_", "code", "signal", "reason"),
    [
        (Exit(0, NOW), 0, None, "Completed"),
        (Exit(1, NOW), 1, None, "Error"),
        (Exit(128, NOW), 128, None, "Error"),
        (Exit(129, NOW), 129, 1, "Error"),
        (Exit(137, NOW), 137, 9, "Error"),
        (Exit(143, NOW), 143, 15, "Error"),
        (Exit(192, NOW), 192, 64, "Error"),
        (Exit(193, NOW), 193, None, "Error"),
        (Exit(255, NOW), 255, None, "Error"),
        (Exit(137, NOW, oom=True), 137, 9, "OOMKilled"),
        (Exit(0, NOW, oom=True), 0, None, "OOMKilled"),
        (Exit(None, NOW), None, None, "Unknown"),
        (Exit(None, NOW, oom=True), None, None, "OOMKilled"),
    ],
)
def test_an_end_is_told_by_code_signal_and_reason(
    exit_: Exit, code: int | None, signal: int | None, reason: str
) -> None:
    assert last_exit(exit_) == LastExit(code=code, signal=signal, reason=reason, at="2027-01-15T08:00:00Z")


def test_a_process_that_never_ended_has_no_last_exit() -> None:
    assert last_exit(None) is None


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (None, None),
        (0.0, "1970-01-01T00:00:00Z"),
        (1_800_000_000.0, "2027-01-15T08:00:00Z"),
        (1_800_000_000.999, "2027-01-15T08:00:00Z"),
    ],
)
def test_moments_are_whole_seconds_in_utc(at: float | None, text: str | None) -> None:
    assert stamp(at) == text


def test_an_archive_is_called_as_its_object_is_or_will_be() -> None:
    assert archive_name(ARCHIVE) == "br-hermes-7"
    assert archive_name(replace(ARCHIVE, object_name="br-hermes-7-again")) == "br-hermes-7-again"


# ---------------------------------------------------------------------------------------------- conditions


def test_a_runtime_without_a_workspace_says_nothing_of_image_data_and_network() -> None:
    status = draft(Record(ref=REF)).build(Phase.PENDING)
    assert said(status, ConditionType.SCHEDULED) == ("True", "Bound", "bound to node node")
    assert said(status, ConditionType.DEGRADED) == ("False", "AsExpected", "")
    for type_ in (ConditionType.IMAGE_READY, ConditionType.DATA_READY, ConditionType.PRESERVED, ConditionType.READY):
        assert condition(status, type_) is None


def test_conditions_follow_from_a_prepared_workspace() -> None:
    status = draft(with_workspace()).build(Phase.RUNNING)
    assert said(status, ConditionType.IMAGE_READY) == ("True", "Present", WORKSPACE.image)
    assert said(status, ConditionType.DATA_READY) == ("True", "Present", "")


def test_data_is_not_called_ready_before_the_engine_confirmed_the_snapshot() -> None:
    status = draft(with_workspace(prepared=False)).build(Phase.CREATING)
    assert condition(status, ConditionType.DATA_READY) is None
    assert status.snapshot_key is None


def test_restored_data_says_from_where() -> None:
    status = draft(with_workspace(restored_from="br-hermes-7")).build(Phase.RUNNING)
    assert said(status, ConditionType.DATA_READY) == ("True", "Restored", "restored from br-hermes-7")
    assert status.restored_from == "br-hermes-7"


@pytest.mark.parametrize("prepared", [True, False])
def test_a_closed_gate_says_which_archive_nothing_starts_before(prepared: bool) -> None:
    status = draft(with_workspace(gate=ARCHIVE, prepared=prepared)).build(Phase.RESTORING)
    assert said(status, ConditionType.DATA_READY) == (
        "False",
        "RestorePending",
        "archive br-hermes-7 is being restored; nothing starts before it is in place",
    )


@pytest.mark.parametrize(
    ("sandbox", "expected"),
    [
        (Present(SandboxFacts("/run/netns/x")), ("True", "Configured", "")),
        (Unknown("permission denied"), ("Unknown", "NetworkFailed", "permission denied")),
        (Absent(), None),
    ],
)
def test_the_network_is_shown_as_it_was_seen(
    sandbox: Present[SandboxFacts] | Absent | Unknown, expected: tuple[str, str, str] | None
) -> None:
    status = draft(with_workspace(), Observed(sandbox=sandbox)).build(Phase.RUNNING)
    assert said(status, ConditionType.NETWORK_READY) == expected


def test_what_a_rule_says_wins_over_defaults_and_its_last_word_over_its_first() -> None:
    made = draft(with_workspace())
    made.set(ConditionType.DATA_READY, Truth.FALSE, Reason.DATA_MISSING, "first")
    made.set(ConditionType.DATA_READY, Truth.FALSE, Reason.SNAPSHOT_CONFLICT, "last")
    assert said(made.build(Phase.BLOCKED), ConditionType.DATA_READY) == ("False", "SnapshotConflict", "last")


def test_conditions_stand_in_one_order_and_name_the_generation_that_they_are_of() -> None:
    made = draft(with_workspace(), Observed(sandbox=Present(SandboxFacts("/run/netns/x"))))
    made.set(ConditionType.READY, Truth.TRUE, Reason.RUNNING)
    made.set(ConditionType.PRESERVED, Truth.FALSE, Reason.IN_PROGRESS)
    conditions = made.build(Phase.RUNNING).conditions
    order = [type_.value for type_ in ConditionType]
    assert [found.type for found in conditions] == sorted((found.type for found in conditions), key=order.index)
    assert {found.observed_generation for found in conditions} == {RUNTIME.generation}


def test_a_message_fits_into_the_object() -> None:
    made = draft(Record(ref=REF))
    made.set(ConditionType.READY, Truth.FALSE, Reason.START_FAILED, "x" * 5000)
    found = condition(made.build(Phase.FAILED), ConditionType.READY)
    assert found is not None
    assert found.message == "x" * 1024


# ---------------------------------------------------------------------------------------------- facts beside them


def test_the_facts_come_from_the_record_and_not_from_the_status_before() -> None:
    lied_to = msgspec.structs.replace(
        RUNTIME, status=RuntimeStatus(phase="Running", restarts=99, snapshot_key="someone-else", last_archive="lie")
    )
    record = replace(
        with_workspace(archived=replace(ARCHIVE, object_name="br-hermes-9")),
        restarts=2,
        started_at=NOW - 10,
        stopped_at=NOW,
        last_exit=Exit(1, NOW),
        operations=3,
        numbered_from=1.5,
    )
    status = draft(record, runtime=lied_to).build(Phase.STOPPED)
    assert status.phase == "Stopped"
    assert status.observed_generation == RUNTIME.generation
    assert (status.node_name, status.node_id) == ("node", "node-1")
    assert status.snapshot_key == WORKSPACE.key
    assert status.image_digest == WORKSPACE.image_digest
    assert status.restarts == 2
    assert (status.started_at, status.stopped_at) == (stamp(NOW - 10), stamp(NOW))
    assert status.last_exit == LastExit(code=1, signal=None, reason="Error", at="2027-01-15T08:00:00Z")
    assert status.last_archive == "br-hermes-9"
    assert status.last_operation == operation_id(REF.uid, 1.5, 3)


def test_a_running_process_has_not_stopped() -> None:
    record = replace(with_workspace(), running=True, started_at=NOW, stopped_at=NOW - 10)
    assert draft(record).build(Phase.RUNNING).stopped_at is None


def test_a_first_operation_is_not_there_before_it_was_begun() -> None:
    assert draft(Record(ref=REF)).build(Phase.PENDING).last_operation is None


def test_a_container_is_named_only_while_it_is_there() -> None:
    there = Observed(container=Present(ContainerFacts(REF.container_id, WORKSPACE.key, "mark")))
    assert draft(with_workspace(), there).build(Phase.RUNNING).container_id == REF.container_id
    assert draft(with_workspace(), Observed(container=Absent())).build(Phase.STOPPED).container_id is None
