"""When a node keeps its hands off, and when a failed attempt is repeated."""

from __future__ import annotations

import random

import pytest
from tests.fakes.journal import FakeJournal, JournalDisk

from perdure.api.conditions import Reason
from perdure.api.names import InstallationId, Uid
from perdure.reconcile.guards import Guards, too_many_absent
from perdure.reconcile.ports.errors import EngineUnavailable, SandboxFailed
from perdure.reconcile.ports.ledger import LedgerIdentity
from perdure.reconcile.retries import Retries

UID = Uid("uid-1")
AWAY = EngineUnavailable("starting it: connection refused")


def at_100() -> float:
    return 100.0


@pytest.mark.parametrize(
    ("absent", "known", "too_many"),
    [(0, 0, False), (3, 3, False), (4, 4, True), (4, 39, True), (4, 40, False), (10, 100, False), (11, 100, True)],
)
def test_more_than_three_and_more_than_a_tenth_are_too_many(absent: int, known: int, too_many: bool) -> None:
    assert too_many_absent(absent, known) is too_many


def test_mass_absence_freezes_until_the_objects_are_back() -> None:
    guards = Guards(FakeJournal())
    guards.check_absence(4, 4)
    assert guards.freeze is not None
    assert guards.freeze.reason is Reason.MASS_ABSENCE
    guards.check_absence(0, 4)
    assert guards.freeze is None


async def test_another_cluster_freezes_until_the_agent_is_restarted_against_the_right_one() -> None:
    disk = JournalDisk()
    guards = Guards(FakeJournal(disk))
    await guards.check_installation(InstallationId("one"))
    assert guards.freeze is None
    guards = Guards(FakeJournal(disk))
    await guards.check_installation(InstallationId("two"))
    await guards.check_installation(InstallationId("one"))
    assert guards.freeze is not None
    assert guards.freeze.reason is Reason.IDENTITY_CHANGED
    guards = Guards(FakeJournal(disk))
    await guards.check_installation(InstallationId("one"))
    assert guards.freeze is None


@pytest.mark.parametrize(
    ("identity", "frozen"),
    [
        (LedgerIdentity("one", 7), False),
        (LedgerIdentity("one", 8), False),
        (LedgerIdentity("one", 6), True),
        (LedgerIdentity("two", 7), True),
        (LedgerIdentity("two", 99), True),
    ],
)
async def test_another_ledger_or_an_older_one_freezes(identity: LedgerIdentity, frozen: bool) -> None:
    guards = Guards(FakeJournal())
    await guards.check_ledger(LedgerIdentity("one", 7))
    await guards.check_ledger(identity)
    assert (guards.freeze is not None) is frozen


async def test_a_frozen_node_does_not_learn_the_wrong_ledger() -> None:
    disk = JournalDisk()
    for identity in (LedgerIdentity("one", 7), LedgerIdentity("two", 99)):
        await Guards(FakeJournal(disk)).check_ledger(identity)
    assert disk.memory.ledger == "one"
    assert disk.memory.highest_fence == 7


def test_delays_double_to_a_minute_and_an_edit_begins_anew() -> None:
    retries = Retries(random.Random(1), at_100)
    delays = [retries.failed(UID, 1, "StartTask", AWAY).retry_at - 100.0 for _ in range(10)]
    for n, delay in enumerate(delays):
        longest = min(60.0, 0.5 * 2**n)
        assert 0.8 * longest <= delay <= longest
    assert retries.failure(UID, 2) is None
    assert retries.failed(UID, 2, "StartTask", AWAY).retry_at <= 100.5


def test_delays_are_capped_for_good_and_spread() -> None:
    retries = Retries(random.Random(4), at_100)
    for attempt in range(1, 2000):
        full = min(60.0, 0.5 * 2 ** min(attempt - 1, 20))
        assert 0.8 * full <= retries.failed(UID, 1, "StartTask", AWAY).retry_at - 100.0 <= full
    assert len({retries.failed(UID, 1, "StartTask", AWAY).retry_at for _ in range(20)}) > 10


def test_what_only_a_change_of_the_node_helps_is_looked_at_as_seldom_as_anything_and_counted() -> None:
    retries = Retries(random.Random(1), at_100)
    error = SandboxFailed("no plugin bridge", reason=Reason.CNI_PLUGIN_MISSING, of_node=True)
    for attempt in (1, 2, 3):
        failure = retries.failed(UID, 1, "StartTask", error)
        assert 48.0 <= failure.retry_at - 100.0 <= 60.0
        assert (failure.attempts, failure.reason, failure.user_error) == (attempt, Reason.CNI_PLUGIN_MISSING, False)
    assert retries.failed(UID, 1, "StartTask", AWAY).attempts == 4


def test_a_failure_counts_until_it_succeeds() -> None:
    retries = Retries(now=at_100)
    failure = retries.failed(UID, 1, "StartTask", AWAY)
    assert retries.failure(UID, 1) == failure
    assert (failure.step, failure.reason) == ("StartTask", Reason.ENGINE_UNAVAILABLE)
    retries.succeeded(UID)
    assert retries.failure(UID, 1) is None


@pytest.mark.parametrize("by", [-3600.0, 3600.0])
def test_a_wall_clock_that_is_set_moves_no_retry(by: float) -> None:
    wall, steady = [1000.0], [50.0]
    retries = Retries(random.Random(1), lambda: wall[0], lambda: steady[0])
    failed = [retries.failed(UID, 1, "StartTask", AWAY) for _ in range(8)][-1]
    delay = failed.retry_at - wall[0]
    for seconds in (0.0, 1.0, delay / 2, delay):
        steady[0], wall[0] = 50.0 + seconds, 1000.0 + by + seconds
        shown = retries.failure(UID, 1)
        assert shown is not None
        assert shown.retry_at - wall[0] == pytest.approx(delay - seconds)
        assert retries.failure(UID, 1) == shown


def test_the_time_of_a_retry_that_is_shown_stays_while_the_clocks_only_drift() -> None:
    wall, steady = [1000.0], [50.0]
    retries = Retries(random.Random(1), lambda: wall[0], lambda: steady[0])
    failure = retries.failed(UID, 1, "StartTask", AWAY)
    wall[0], steady[0] = 1030.2, 80.0
    assert retries.failure(UID, 1) == failure
