"""Which phase follows a failure: the same order wherever it is asked."""

from __future__ import annotations

import pytest
from tests.property.worlds import REF

from perdure.api.conditions import Reason
from perdure.api.names import OperationId
from perdure.api.phases import Phase, may_follow
from perdure.plan.failures import phase_after, phase_told
from perdure.plan.operations import DURABLE, TRANSIENT_PHASE
from perdure.plan.world import Failure, Op, OpenOperation, Record, Source

ENDED_BY_A_FAILURE = [op for op in Op if op not in DURABLE]


def failure(*, user_error: bool = False, blocks_data: bool = False) -> Failure:
    return Failure(Reason.INVALID_SPEC, "it failed", "StartTask", user_error, blocks_data, retry_at=1.0)


def record(phase: Phase | None, op: Op, *, running: bool = False) -> Record:
    operation = OpenOperation(OperationId("1"), op, Source.KUBECTL, 0.0)
    return Record(REF, phase=phase, operation=operation, running=running)


def test_data_at_stake_comes_before_a_wrong_spec_and_that_before_what_passes() -> None:
    assert phase_after(failure(user_error=True, blocks_data=True), Phase.STOPPED) is Phase.BLOCKED
    assert phase_after(failure(user_error=True), Phase.STOPPED) is Phase.FAILED
    assert phase_after(failure(), Phase.STOPPED) is Phase.STOPPED


def test_no_edit_helps_what_is_being_deleted() -> None:
    wrong = failure(user_error=True)
    assert phase_after(wrong, Phase.PRESERVING, spec_is_read=False) is Phase.PRESERVING
    both = failure(user_error=True, blocks_data=True)
    assert phase_after(both, Phase.PRESERVING, spec_is_read=False) is Phase.BLOCKED


def test_the_history_tells_where_it_came_from_unless_a_person_must_do_something() -> None:
    assert phase_told(failure(), record(Phase.STOPPED, Op.START)) is Phase.STOPPED
    assert phase_told(failure(), record(Phase.STOPPED, Op.STOP, running=True)) is Phase.RUNNING
    assert phase_told(failure(), record(None, Op.START)) is TRANSIENT_PHASE[Op.START]
    assert phase_told(failure(user_error=True), record(Phase.RUNNING, Op.RESTART, running=True)) is Phase.FAILED


@pytest.mark.parametrize("op", ENDED_BY_A_FAILURE)
@pytest.mark.parametrize("phase", [None, Phase.STOPPED, Phase.RUNNING, Phase.REMOVED, Phase.FAILED, Phase.BLOCKED])
@pytest.mark.parametrize("wrong", [failure(), failure(user_error=True), failure(blocks_data=True)])
def test_what_the_history_tells_is_an_edge_of_the_table(op: Op, phase: Phase | None, wrong: Failure) -> None:
    assert may_follow(phase, phase_told(wrong, record(phase, op)))
