"""When a node keeps its hands off, and when a failed attempt is repeated."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest
from tests.fakes.journal import FakeJournal, JournalDisk
from tests.integration.ledger.samples import ref

from perdure.api.conditions import Reason
from perdure.api.names import InstallationId, Uid
from perdure.api.runtime import parse_runtime
from perdure.kube.cache import RuntimeCache
from perdure.plan.world import Record
from perdure.reconcile.guards import Guards, too_many_absent
from perdure.reconcile.ports.errors import EngineUnavailable, PortError, SandboxFailed
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


class Node:
    """Lives on record, some of which have an object."""

    def __init__(self, *uids: str) -> None:
        self.journal = FakeJournal()
        self.guards = Guards(self.journal)
        self.objects = RuntimeCache()
        self.version = 0
        for uid in uids:
            self.add(uid)

    def add(self, uid: str) -> None:
        self.journal.disk.records[Uid(uid)] = Record(ref(uid))
        self.come_back(uid)

    def lose(self, *uids: str) -> None:
        for uid in uids:
            found = self.objects.get(Uid(uid))
            assert found is not None
            self.objects.deleted(found)

    def come_back(self, *uids: str) -> None:
        for uid in uids:
            self.version += 1
            life, version = ref(uid), str(self.version)
            metadata = {"namespace": life.namespace, "name": life.name, "uid": uid, "resourceVersion": version}
            self.objects.put(parse_runtime({"kind": life.kind.value, "metadata": metadata, "spec": {"image": "x"}}))

    async def frozen(self) -> bool:
        """After a full list."""
        await self.guards.check_absence(self.objects)
        freeze = self.guards.freeze
        assert freeze is None or freeze.reason is Reason.MASS_ABSENCE
        return freeze is not None

    def restart(self) -> None:
        self.journal = FakeJournal(self.journal.disk)
        self.guards = Guards(self.journal)


FOUR = ("1", "2", "3", "4")


async def test_mass_absence_freezes_until_the_objects_are_back_and_says_what_lifts_it() -> None:
    node = Node(*FOUR)
    assert not await node.frozen()
    node.lose(*FOUR)
    assert await node.frozen()
    assert node.guards.freeze is not None
    assert "4 of this node's 4 runtimes" in node.guards.freeze.message
    assert "perdure nodes accept-absence" in node.guards.freeze.message
    node.come_back(*FOUR)
    assert not await node.frozen()


async def test_what_was_seen_being_deleted_or_is_released_is_no_absence() -> None:
    node = Node(*FOUR, "5")
    node.lose(*FOUR)
    records = node.journal.disk.records
    records[Uid("1")] = replace(records[Uid("1")], deletion_seen=True)
    assert not await node.frozen()
    records[Uid("1")] = replace(records[Uid("1")], deletion_seen=False)
    assert await node.frozen()
    records[Uid("2")] = replace(records[Uid("2")], released=True)
    assert not await node.frozen()


async def test_absence_that_a_person_accepted_freezes_no_more_also_after_a_restart() -> None:
    node = Node(*FOUR, "5")
    node.lose(*FOUR)
    assert await node.frozen()
    assert await node.guards.accept_absence() == set(FOUR)
    assert node.guards.freeze is None
    assert not await node.frozen()
    node.restart()
    assert not await node.frozen()
    assert set(node.journal.records()) == {*FOUR, "5"}, "what is on record stays what it is"


async def test_what_goes_absent_after_the_acceptance_counts_anew() -> None:
    later = ("5", "6", "7", "8")
    node = Node(*FOUR, *later)
    node.lose(*FOUR)
    await node.frozen()
    await node.guards.accept_absence()
    node.lose("5", "6", "7")
    assert not await node.frozen()
    node.lose("8")
    assert await node.frozen()
    assert node.guards.freeze is not None
    assert "4 of this node's 4 runtimes" in node.guards.freeze.message, "what is accepted makes no share smaller"


@pytest.mark.parametrize("restarted", [False, True])
async def test_an_object_that_was_back_is_not_accepted_when_it_goes_again(restarted: bool) -> None:
    node = Node(*FOUR)
    node.lose(*FOUR)
    await node.frozen()
    await node.guards.accept_absence()
    node.come_back(*FOUR)
    assert not await node.frozen()
    if restarted:
        node.restart()
    node.lose(*FOUR)
    assert await node.frozen()


async def test_acceptance_that_cannot_be_journalled_is_none() -> None:
    node = Node(*FOUR)
    node.lose(*FOUR)
    await node.frozen()
    node.journal.broken = "no space left on device"
    with pytest.raises(PortError, match="no space"):
        await node.guards.accept_absence()
    assert node.guards.freeze is not None
    assert await node.frozen()


async def test_an_end_of_acceptance_that_cannot_be_journalled_holds_and_is_written_down_later() -> None:
    node = Node(*FOUR)
    node.lose(*FOUR)
    await node.frozen()
    await node.guards.accept_absence()
    node.come_back(*FOUR)
    node.journal.broken = "no space left on device"
    assert not await node.frozen()
    node.lose(*FOUR)
    assert await node.frozen()
    node.journal.broken = None
    assert await node.frozen()
    node.restart()
    assert await node.frozen()


async def test_neither_of_two_things_remembered_at_once_is_lost() -> None:
    class Slow(FakeJournal):
        """Takes the time of an fsync, in which others go on."""

        async def commit(self, **given: Any) -> None:
            await asyncio.sleep(0.01)
            await super().commit(**given)

    node = Node(*FOUR)
    node.guards = Guards(Slow(node.journal.disk))
    node.lose(*FOUR)
    await node.frozen()
    await asyncio.gather(node.guards.check_ledger(LedgerIdentity("one", 7)), node.guards.accept_absence())
    memory = node.journal.memory()
    assert (memory.ledger, memory.highest_fence, len(memory.accepted_absent)) == ("one", 7, 4)


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
