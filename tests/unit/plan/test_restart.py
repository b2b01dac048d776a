"""When a main process that ended is started again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.property.worlds import REF

from perdure.api.conditions import Reason
from perdure.api.runtime import RestartPolicy
from perdure.plan.restart import HEALTHY_SECONDS, delay_after, judge
from perdure.plan.world import Exit, Halted, Record

RECORD = Record(ref=REF, started_at=1000.0, restarts=4, failures_in_row=2)


@pytest.mark.parametrize(
    ("failures", "seconds"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 4), (10, 256), (11, 300), (12, 300), (10_000, 300)]
)
def test_the_first_restart_is_at_once_and_the_delay_doubles_to_five_minutes(failures: int, seconds: float) -> None:
    assert delay_after(failures) == seconds


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, True), (137, True), (None, True)])
def test_on_failure_leaves_a_clean_end_alone(code: int | None, again: bool) -> None:
    verdict = judge(RECORD, Exit(code, 1001.0), RestartPolicy.ON_FAILURE, "mark")
    assert (verdict.next_start_at is not None) is again
    assert verdict.halted == (None if again else Halted(Reason.COMPLETED, "mark"))


@pytest.mark.parametrize(("code", "reason"), [(0, Reason.COMPLETED), (3, Reason.EXITED), (None, Reason.EXITED)])
def test_never_leaves_every_end_alone(code: int | None, reason: Reason) -> None:
    verdict = judge(RECORD, Exit(code, 1001.0), RestartPolicy.NEVER, "mark")
    assert verdict.halted == Halted(reason, "mark")
    assert (verdict.next_start_at, verdict.restarts) == (None, 4)


def test_always_restarts_a_clean_end_too_and_counts_it() -> None:
    verdict = judge(RECORD, Exit(0, 1001.0), RestartPolicy.ALWAYS, "mark")
    assert (verdict.failures_in_row, verdict.next_start_at, verdict.restarts) == (3, 1003.0, 5)


def test_ten_minutes_of_life_begin_the_row_anew() -> None:
    ended = Exit(1, 1000.0 + HEALTHY_SECONDS)
    assert judge(RECORD, ended, RestartPolicy.ALWAYS, "mark").failures_in_row == 1
    sooner = replace(ended, at=ended.at - 1)
    assert judge(RECORD, sooner, RestartPolicy.ALWAYS, "mark").failures_in_row == 3
