"""When a main process that ended is started again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.property.worlds import REF

from perdure.api.conditions import Reason
from perdure.api.runtime import RestartPolicy
from perdure.plan.restart import HEALTHY_SECONDS, counts_anew, delay_after, due_at, judge
from perdure.plan.uptime import Uptime
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


WAITING = replace(RECORD, failures_in_row=8, stopped_up=Uptime("boot", 50.0), next_start_at=2000.0 + delay_after(8))


@pytest.mark.parametrize("by", [-3600.0, -10.0, 0.0])
@pytest.mark.parametrize("elapsed", [0.0, 10.0, 63.0, 64.0, 100.0])
def test_a_clock_that_is_set_back_delays_no_restart(by: float, elapsed: float) -> None:
    now = 2000.0 + by + elapsed
    at = due_at(WAITING, now, Uptime("boot", 50.0 + elapsed))
    assert at == min(2000.0 + 64.0, now + 64.0 - elapsed)
    assert (now >= at) is (elapsed >= 64.0)
    assert not counts_anew(WAITING, now, Uptime("boot", 50.0 + elapsed))


@pytest.mark.parametrize("uptime", [None, Uptime("another boot", 5.0)])
def test_over_a_reboot_the_delay_is_counted_anew_and_once(uptime: Uptime | None) -> None:
    now = 2000.0 - 3600.0
    assert counts_anew(WAITING, now, uptime)
    at = due_at(WAITING, now, uptime)
    assert at == now + 64.0
    noted = replace(WAITING, next_start_at=at)
    for later in (now, now + 30.0, now + 64.0):
        assert not counts_anew(noted, later, uptime)
        assert due_at(noted, later, uptime) == at
    assert not counts_anew(WAITING, 2000.0, uptime)


def test_what_waits_for_nothing_has_no_time() -> None:
    assert due_at(RECORD, 2000.0, None) is None
    assert not counts_anew(RECORD, 2000.0, None)
