"""Leases of one process, and rows on their way from the journal to the ledger."""

from __future__ import annotations

import pytest
from tests.fakes.journal import FakeJournal
from tests.fakes.ledger import FakeAgentLedger, LedgerTables
from tests.unit.journal.samples import rows

from perdure.api.names import NodeId, NodeName, Uid
from perdure.reconcile.leases import TTL_SECONDS, LeaseKeeper
from perdure.reconcile.outbox import Outbox
from perdure.reconcile.ports.errors import LedgerUnavailable, PortError

UID = Uid("uid-1")
NODE = NodeId("node-1")


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
    return LeaseKeeper(FakeAgentLedger(NODE, tables, monotonic=clock), clock)


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


async def test_a_lease_that_was_taken_over_is_taken_anew_with_a_higher_fence(
    keeper: LeaseKeeper, tables: LedgerTables, clock: Clock
) -> None:
    first = await keeper.hold(UID, 10)
    await FakeAgentLedger(NODE, tables).acquire(UID, TTL_SECONDS)
    clock.now += TTL_SECONDS
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
