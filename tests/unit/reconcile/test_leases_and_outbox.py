"""Leases of one process, and rows on their way from the journal to the ledger."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest
from structlog.testing import capture_logs
from tests.fakes.guards import TrustingGuards
from tests.fakes.journal import FakeJournal, JournalDisk
from tests.fakes.ledger import FakeAgentLedger, LedgerTables
from tests.unit.journal.samples import rows

from perdure.api.conditions import Reason
from perdure.api.names import InstallationId, NodeId, NodeName, Uid
from perdure.ledger.agent import PostgresAgentLedger
from perdure.ledger.database import Database
from perdure.reconcile.guards import Guards
from perdure.reconcile.leases import RELEASE_SECONDS, RENEWALS_PER_TTL, LeaseKeeper, LeaseTimes
from perdure.reconcile.outbox import LINGER_SECONDS, REFUSED_SECONDS, RETRY_SECONDS, Outbox
from perdure.reconcile.ports.errors import (
    LeaseBusy,
    LedgerChanged,
    LedgerUnavailable,
    PortError,
    RowRefused,
    StaleFence,
)
from perdure.reconcile.ports.journal import LedgerRow
from perdure.reconcile.ports.ledger import Lease, LedgerIdentity
from perdure.reconcile.retries import Retries
from perdure.reconcile.uptime import boottime

UID = Uid("uid-1")
NODE = NodeId("node-1")
TTL_SECONDS = LeaseTimes().ttl_seconds


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tables(clock: Clock) -> LedgerTables:
    return LedgerTables(now=clock)


@pytest.fixture
def keeper(tables: LedgerTables, clock: Clock) -> LeaseKeeper:
    return LeaseKeeper(FakeAgentLedger(NODE, tables, monotonic=clock), TrustingGuards(), clock)


async def test_a_lease_with_enough_left_is_used_again(keeper: LeaseKeeper, clock: Clock) -> None:
    first = await keeper.hold(UID, 10)
    clock.now += TTL_SECONDS - 20.5
    assert await keeper.hold(UID, 10) == first


async def test_a_lease_with_less_than_twice_the_deadline_left_is_renewed(keeper: LeaseKeeper, clock: Clock) -> None:
    first = await keeper.hold(UID, 10)
    clock.now += TTL_SECONDS - 20
    again = await keeper.hold(UID, 10)
    assert again.fence == first.fence
    assert again.expires_at == clock.now + TTL_SECONDS


async def test_a_long_step_gets_a_long_lease(keeper: LeaseKeeper, clock: Clock) -> None:
    assert (await keeper.hold(UID, 100)).expires_at > clock.now + 200


async def test_a_lease_that_was_taken_over_is_said_to_be_lost_and_then_taken_anew_with_a_higher_fence(
    keeper: LeaseKeeper, tables: LedgerTables, clock: Clock
) -> None:
    """Whoever lost it looks again before anything else: what was seen under it may not be so any more."""
    first = await keeper.hold(UID, 10)
    await FakeAgentLedger(NODE, tables).acquire(UID, TTL_SECONDS)
    clock.now += TTL_SECONDS
    with pytest.raises(StaleFence):
        await keeper.hold(UID, 10)
    assert (await keeper.hold(UID, 10)).fence > first.fence + 1


async def test_a_lease_of_another_node_is_waited_for(keeper: LeaseKeeper, tables: LedgerTables, clock: Clock) -> None:
    await FakeAgentLedger(NodeId("node-2"), tables).acquire(UID, TTL_SECONDS)
    with pytest.raises(PortError, match="node-2 holds it"):
        await keeper.hold(UID, 10)
    clock.now += TTL_SECONDS + 1
    await keeper.hold(UID, 10)


async def test_a_released_lease_is_free(keeper: LeaseKeeper, tables: LedgerTables) -> None:
    await keeper.hold(UID, 10)
    await keeper.release(UID)
    await FakeAgentLedger(NodeId("node-2"), tables).acquire(UID, TTL_SECONDS)


async def test_a_release_that_fails_is_no_harm(keeper: LeaseKeeper, tables: LedgerTables) -> None:
    await keeper.hold(UID, 10)
    tables.away = "connection refused"
    await keeper.release(UID)


async def test_rows_arrive_in_order_and_once(tables: LedgerTables) -> None:
    journal = FakeJournal()
    outbox = Outbox(journal, FakeAgentLedger(NODE, tables), NodeName("node"))
    await journal.commit(rows=rows(1))
    await journal.commit(rows=rows(2))
    await outbox.flush()
    assert journal.unsent() == ()
    assert [entry.id for entry in tables.operations.values()] == ["operation-1", "operation-2"]
    assert all(entry.finished_at is not None for entry in tables.operations.values())


async def test_rows_wait_in_the_journal_while_the_ledger_is_away(tables: LedgerTables) -> None:
    journal = FakeJournal()
    outbox = Outbox(journal, FakeAgentLedger(NODE, tables), NodeName("node"))
    await journal.commit(rows=rows(1))
    tables.away = "connection refused"
    with pytest.raises(LedgerUnavailable):
        await outbox.flush()
    assert list(journal.unsent()) == list(rows(1))
    tables.away = None
    await outbox.flush()
    assert journal.unsent() == ()


# ---------------------------------------------------------------------------------------------- of which ledger


@pytest.fixture
def disk() -> JournalDisk:
    return JournalDisk()


@pytest.fixture
def guards(disk: JournalDisk) -> Guards:
    return Guards(FakeJournal(disk))


async def test_no_lease_is_taken_before_anybody_looked_which_ledger_it_is(tables: LedgerTables, guards: Guards) -> None:
    keeper = LeaseKeeper(FakeAgentLedger(NODE, tables), guards, tables.now)
    with pytest.raises(LedgerUnavailable, match="has not been checked yet"):
        await keeper.hold(UID)
    assert tables.leases == {}
    await guards.check_ledger(tables.identity())
    await keeper.hold(UID)


async def test_a_lease_of_a_ledger_that_was_put_back_is_refused_and_freezes(
    tables: LedgerTables, guards: Guards, disk: JournalDisk
) -> None:
    """Its open connections outlived it: nobody had a reason to look at its identity again."""
    keeper = LeaseKeeper(FakeAgentLedger(NODE, tables), guards, tables.now)
    await guards.check_ledger(tables.identity())
    for n in range(5):
        held = await keeper.hold(Uid(f"uid-{n}"))
    assert disk.memory.highest_fence == held.fence, "each fence is remembered, also over a restart"
    tables.leases.clear()
    tables.fence = held.fence - 1
    with pytest.raises(LedgerChanged, match=f"gave out fence {held.fence}, this node has seen {held.fence}"):
        await keeper.hold(Uid("due"))
    assert guards.freeze is not None
    assert guards.freeze.reason is Reason.IDENTITY_CHANGED
    with pytest.raises(LedgerChanged):
        await keeper.hold(Uid("uid-0"))  # what is held from before is worth nothing either
    assert disk.memory.highest_fence == held.fence


async def test_leases_that_are_taken_at_once_may_be_answered_in_any_order(
    tables: LedgerTables, guards: Guards, disk: JournalDisk
) -> None:
    class Shuffled(FakeAgentLedger):
        async def acquire(self, key: str, ttl: float) -> Lease:
            lease = await super().acquire(key, ttl)
            for _ in range(int(key) % 7):
                await asyncio.sleep(0)
            return lease

        async def identity(self) -> LedgerIdentity:
            answer = await super().identity()
            for _ in range(5):
                await asyncio.sleep(0)
            return answer

    ledger = Shuffled(NODE, tables)
    keeper = LeaseKeeper(ledger, guards, tables.now)
    await guards.check_ledger(await ledger.identity())

    async def look() -> None:
        seen = guards.highest_fence
        await guards.check_ledger(await ledger.identity(), seen)

    await asyncio.gather(*(work for n in range(50) for work in (keeper.hold(Uid(str(n))), look())))
    assert guards.freeze is None
    assert disk.memory.highest_fence == tables.fence


# ---------------------------------------------------------------------------------------------- refused rows

BAD = rows(2)[0]


def refusing(tables: LedgerTables, clock: Clock) -> FakeAgentLedger:
    """Refuses rows of operation 2 until the clock says 2000."""

    class Refusing(FakeAgentLedger):
        async def apply(self, rows: Sequence[LedgerRow], node: NodeName) -> None:
            if clock.now < 2000 and any(row.id == BAD.id for row in rows):
                raise RowRefused("writing rows: timestamp out of range")
            await super().apply(rows, node)

    return Refusing(NODE, tables)


async def test_a_refused_row_holds_up_no_other_and_is_told_once(tables: LedgerTables, clock: Clock) -> None:
    journal = FakeJournal()
    outbox = Outbox(journal, refusing(tables, clock), NodeName("node"))
    for n in range(1, 4):
        await journal.commit(rows=rows(n))
    with capture_logs() as told:
        await outbox.flush()
        assert list(tables.operations) == ["operation-1", "operation-3"]
        assert (list(journal.refused()), list(journal.unsent())) == (list(rows(2)), [])
        await journal.take_back()
        await journal.commit(rows=rows(4))
        await outbox.flush()
    assert list(journal.refused()) == list(rows(2))
    assert list(tables.operations) == ["operation-1", "operation-3", "operation-4"]
    assert [line["op"] for line in told if line["event"] == "ledger_row_refused"] == [BAD.id]


@pytest.mark.looptime
async def test_refused_rows_are_tried_again_at_the_start_and_hourly() -> None:
    loop = asyncio.get_running_loop()
    clock = Clock()
    tables, disk = LedgerTables(now=loop.time), JournalDisk()
    journal = FakeJournal(disk)
    outbox = Outbox(journal, refusing(tables, clock), NodeName("node"))
    await journal.commit(rows=rows(2))
    running = asyncio.create_task(outbox.run())
    await asyncio.sleep(1)
    assert list(journal.refused()) == list(rows(2))
    clock.now = 3000.0
    await asyncio.sleep(REFUSED_SECONDS - 2)
    assert list(journal.refused()) == list(rows(2))
    await asyncio.sleep(2)
    assert (journal.refused(), journal.unsent()) == ((), ())
    assert BAD.id in tables.operations
    await _end(running)

    disk.aside.extend(rows(3))
    running = asyncio.create_task(Outbox(FakeJournal(disk), FakeAgentLedger(NODE, tables), NodeName("node")).run())
    await asyncio.sleep(1)
    assert (disk.aside, disk.unsent) == ([], [])
    await _end(running)


@pytest.mark.looptime
@pytest.mark.parametrize("refuses", [False, True])
async def test_refused_rows_that_are_tried_again_while_others_are_on_their_way_push_none_of_them_out(
    refuses: bool,
) -> None:
    """A worker begins a durable operation while the outbox begins its hour."""
    clock, tables, disk = Clock(), LedgerTables(), JournalDisk(aside=list(rows(2)))
    journal, asked, goes_on = FakeJournal(disk), asyncio.Event(), asyncio.Event()

    class Slow(FakeAgentLedger):
        async def apply(self, rows: Sequence[LedgerRow], node: NodeName) -> None:
            asked.set()
            await goes_on.wait()
            if refuses and clock.now < 2000 and any(row.id != "operation-1" for row in rows):
                raise RowRefused("writing rows: timestamp out of range")
            await super().apply(rows, node)

    outbox = Outbox(journal, Slow(NODE, tables), NodeName("node"))
    await journal.commit(rows=(*rows(1), *rows(3)))
    worker = asyncio.create_task(outbox.flush())
    await asked.wait()
    running = asyncio.create_task(outbox.run())
    await asyncio.sleep(1)
    goes_on.set()
    await worker
    await asyncio.sleep(1)
    clock.now = 3000.0
    await asyncio.sleep(REFUSED_SECONDS)
    assert (disk.aside, disk.unsent) == ([], [])
    assert set(tables.operations) == {"operation-1", "operation-2", "operation-3"}
    assert all(entry.started_at and entry.finished_at for entry in tables.operations.values())
    await _end(running)


# ---------------------------------------------------------------------------------------------- as time goes by

RENEWAL_SECONDS = TTL_SECONDS / RENEWALS_PER_TTL


class Timed:
    """A keeper whose clock, and whose ledger's clock, is that of the event loop."""

    def __init__(self) -> None:
        self.now = asyncio.get_running_loop().time
        self.tables = LedgerTables(now=self.now)
        self.keeper = LeaseKeeper(FakeAgentLedger(NODE, self.tables), TrustingGuards(), self.now)


@pytest.mark.looptime
async def test_a_kept_lease_outlives_its_time_as_long_as_the_work_goes_on() -> None:
    timed = Timed()
    async with timed.keeper.kept(UID) as lease:
        await asyncio.sleep(10 * TTL_SECONDS)
        held = timed.tables.leases[UID]
        assert held.fence == lease.fence
        assert held.expires_at > timed.now() + TTL_SECONDS - 2 * RENEWAL_SECONDS
        with pytest.raises(PortError, match="holds it"):
            await FakeAgentLedger(NodeId("node-2"), timed.tables).acquire(UID, TTL_SECONDS)


@pytest.mark.looptime
async def test_an_effect_that_takes_too_long_is_cut_off_while_its_lease_is_good() -> None:
    timed = Timed()
    with pytest.raises(PortError, match="cut off"):
        async with timed.keeper.effect(UID):
            await asyncio.sleep(10 * TTL_SECONDS)
    assert timed.tables.leases[UID].expires_at - timed.now() == LeaseTimes().effect_seconds


@pytest.mark.looptime
async def test_an_effects_own_timeout_is_its_own() -> None:
    with pytest.raises(TimeoutError):
        async with Timed().keeper.effect(UID):
            raise TimeoutError


@pytest.mark.looptime
async def test_a_kept_lease_is_not_renewed_after_the_work() -> None:
    timed = Timed()
    with pytest.raises(RuntimeError, match="the work failed"):
        async with timed.keeper.kept(UID):
            raise RuntimeError("the work failed")
    await asyncio.sleep(TTL_SECONDS + 1)
    taken = await FakeAgentLedger(NodeId("node-2"), timed.tables).acquire(UID, TTL_SECONDS)
    await asyncio.sleep(RENEWAL_SECONDS)
    assert timed.tables.leases[UID].token == taken.token


@pytest.mark.looptime
async def test_a_renewal_that_fails_is_tried_again_while_the_lease_is_good() -> None:
    timed = Timed()
    async with timed.keeper.kept(UID) as lease:
        timed.tables.away = "connection refused"
        await asyncio.sleep(RENEWAL_SECONDS + 1)
        timed.tables.away = None
        await asyncio.sleep(TTL_SECONDS)
        assert timed.tables.leases[UID].fence == lease.fence
        assert timed.tables.leases[UID].expires_at > timed.now()


@pytest.mark.looptime
async def test_whatever_goes_on_at_once_is_renewed_in_one_statement_for_each_interval() -> None:
    timed, calls = Timed(), []
    ledger = FakeAgentLedger(NODE, timed.tables, on_call=lambda name, when: calls.append((name, when)))
    keeper = LeaseKeeper(ledger, TrustingGuards(), timed.now)
    uids = [Uid(f"uid-{n}") for n in range(50)]
    async with AsyncExitStack() as works:
        for uid in uids:
            await works.enter_async_context(keeper.kept(uid))
        calls.clear()
        await asyncio.sleep(4 * RENEWAL_SECONDS + 1)
        assert [name for name, when in calls if when == "before"] == ["ledger.renew_all"] * 4
        assert all(timed.tables.leases[uid].expires_at > timed.now() + 2 * RENEWAL_SECONDS for uid in uids)
    calls.clear()
    await asyncio.sleep(10 * TTL_SECONDS)
    assert calls == []


@pytest.mark.looptime
async def test_one_that_was_taken_over_does_not_keep_the_others_from_being_renewed() -> None:
    timed, other = Timed(), Uid("uid-2")
    async with timed.keeper.kept(UID), timed.keeper.kept(other) as lease:
        await FakeAgentLedger(NODE, timed.tables).acquire(UID, TTL_SECONDS)
        await asyncio.sleep(2 * TTL_SECONDS)
        assert timed.tables.leases[other].fence == lease.fence
        assert timed.tables.leases[other].expires_at > timed.now()
        assert timed.tables.leases[UID].expires_at < timed.now()


@pytest.mark.looptime
async def test_a_lease_is_given_back_although_whoever_gave_it_back_was_cancelled() -> None:
    timed, asked = Timed(), asyncio.Event()

    class Slow(FakeAgentLedger):
        async def release(self, lease: Lease) -> None:
            asked.set()
            await asyncio.sleep(3)
            await super().release(lease)

    keeper = LeaseKeeper(Slow(NODE, timed.tables), TrustingGuards(), timed.now)
    await keeper.hold(UID, 10)
    caller = asyncio.create_task(keeper.release(UID))
    await asked.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await asyncio.sleep(3)
    await FakeAgentLedger(NodeId("node-2"), timed.tables).acquire(UID, TTL_SECONDS)


@pytest.mark.looptime
async def test_a_release_has_a_deadline_of_its_own() -> None:
    timed = Timed()

    class Silent(FakeAgentLedger):
        async def release(self, lease: Lease) -> None:
            await asyncio.Event().wait()

    keeper = LeaseKeeper(Silent(NODE, timed.tables), TrustingGuards(), timed.now)
    await keeper.hold(UID, 10)
    began = timed.now()
    await keeper.release(UID)
    assert timed.now() - began == pytest.approx(RELEASE_SECONDS)


async def test_an_effect_that_a_sleep_of_the_machine_made_late_does_not_count(
    keeper: LeaseKeeper, clock: Clock
) -> None:
    """No timeout of the event loop goes on while the machine sleeps."""
    with pytest.raises(PortError, match="was not done 10 s before the lease runs out") as late:
        async with keeper.effect(UID):
            clock.now += TTL_SECONDS - 9
    assert late.value.reason is Reason.IN_PROGRESS
    async with keeper.effect(UID):
        clock.now += 10


async def test_a_lease_runs_out_while_the_machine_sleeps(
    tables: LedgerTables, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = [5000.0]
    monkeypatch.setattr(
        "perdure.reconcile.uptime.time.clock_gettime",
        lambda which: slept[0] if which == time.CLOCK_BOOTTIME else 100.0,
    )
    keeper = LeaseKeeper(FakeAgentLedger(NODE, tables, monotonic=boottime), TrustingGuards())
    first = await keeper.hold(UID)
    assert first.expires_at == slept[0] + TTL_SECONDS
    slept[0] += TTL_SECONDS + 1
    clock.now += TTL_SECONDS + 1
    tables.leases[UID].holder, tables.leases[UID].token = NodeId("node-2"), "theirs"
    with pytest.raises(StaleFence):
        await keeper.hold(UID)


async def test_the_ledger_reckons_a_lease_by_the_clock_that_counts_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.reconcile.uptime.time.clock_gettime", lambda which: 1e6 + which)
    database = Database("host=/nonexistent dbname=none")

    async def answer(*_: object) -> dict[str, int]:
        return {"fence": 3}

    monkeypatch.setattr(database, "row", answer)
    lease = await PostgresAgentLedger(database, InstallationId("cluster"), NODE).acquire(UID, 60.0)
    assert lease.expires_at == 1e6 + time.CLOCK_BOOTTIME + 60.0


@pytest.mark.looptime
async def test_a_dead_holder_is_succeeded_within_a_second_after_its_time() -> None:
    timed = Timed()
    retries = Retries(now=timed.now)
    await FakeAgentLedger(NodeId("node-2"), timed.tables).acquire(UID, TTL_SECONDS)
    died = timed.now()
    while True:
        try:
            await timed.keeper.hold(UID, 10)
            break
        except LeaseBusy as busy:
            await asyncio.sleep(retries.failed(UID, 1, "Begin", busy).retry_at - timed.now())
    assert TTL_SECONDS <= timed.now() - died <= TTL_SECONDS + 1


@pytest.mark.parametrize("error", [OSError("getrandom: not there"), NotImplementedError("no source")])
async def test_a_machine_without_randomness_takes_no_lease(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_bytes: int) -> str:
        raise error

    monkeypatch.setattr("perdure.ledger.agent.secrets.token_hex", fail)
    ledger = PostgresAgentLedger(Database("host=/nonexistent dbname=none"), InstallationId("cluster"), NODE)
    with pytest.raises(PortError, match="no random numbers"):
        await ledger.acquire(UID, TTL_SECONDS)


@pytest.mark.looptime
async def test_a_lease_that_was_dropped_is_not_renewed_any_more() -> None:
    timed = Timed()
    async with timed.keeper.kept(UID):
        timed.keeper.drop(UID)
        held = timed.tables.leases[UID].expires_at
        await asyncio.sleep(2 * RENEWAL_SECONDS)
        assert timed.tables.leases[UID].expires_at == held


async def test_after_a_drop_a_lease_of_its_own_is_taken_at_once(keeper: LeaseKeeper, tables: LedgerTables) -> None:
    first = await keeper.hold(UID, 10)
    taken = await FakeAgentLedger(NODE, tables).acquire(UID, TTL_SECONDS)
    assert await keeper.hold(UID, 10) == first  # nobody told it yet
    keeper.drop(UID)
    assert (await keeper.hold(UID, 10)).fence > taken.fence > first.fence


@pytest.mark.looptime
async def test_the_outbox_tries_again_with_growing_delays_until_the_ledger_is_back() -> None:
    loop = asyncio.get_running_loop()
    journal, tables = FakeJournal(), LedgerTables(now=loop.time, away="connection refused")
    asked: list[float] = []
    ledger = FakeAgentLedger(
        NODE, tables, on_call=lambda _, when: asked.append(loop.time()) if when == "before" else None
    )
    outbox = Outbox(journal, ledger, NodeName("node"))
    await journal.commit(rows=rows(1))
    running = asyncio.create_task(outbox.run())
    await asyncio.sleep(sum(RETRY_SECONDS) + RETRY_SECONDS[-1] + 0.1)
    waits = [later - sooner for sooner, later in itertools.pairwise(asked)]
    assert waits == pytest.approx([*RETRY_SECONDS, RETRY_SECONDS[-1]])
    assert list(journal.unsent()) == list(rows(1))

    await journal.commit(rows=rows(2))
    outbox.poke()
    tables.away = None
    await asyncio.sleep(RETRY_SECONDS[-1])
    assert journal.unsent() == ()
    assert [entry.id for entry in tables.operations.values()] == ["operation-1", "operation-2"]
    await _end(running)


@pytest.mark.looptime
async def test_the_outbox_sends_soon_when_poked_several_rows_together_and_asks_nothing_when_not() -> None:
    loop = asyncio.get_running_loop()
    journal, tables = FakeJournal(), LedgerTables(now=loop.time)
    calls: list[str] = []
    outbox = Outbox(
        journal, FakeAgentLedger(NODE, tables, on_call=lambda name, _: calls.append(name)), NodeName("node")
    )
    running = asyncio.create_task(outbox.run())
    await asyncio.sleep(3600)
    assert calls == []
    for n in (1, 2):
        await journal.commit(rows=rows(n))
        outbox.poke()
        await asyncio.sleep(LINGER_SECONDS / 10)
    await asyncio.sleep(LINGER_SECONDS)
    assert journal.unsent() == ()
    together = len(calls)
    await journal.commit(rows=rows(3))
    outbox.poke()
    await asyncio.sleep(2 * LINGER_SECONDS)
    assert journal.unsent() == ()
    assert len(calls) == 2 * together, "the first two went as the third did"
    assert [entry.id for entry in tables.operations.values()] == ["operation-1", "operation-2", "operation-3"]
    await _end(running)


async def _end(running: asyncio.Task[None]) -> None:
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
