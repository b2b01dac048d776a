"""`perdure history`: every life of a name, newest first, also what is half known."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from tests.integration.ledger.samples import NAME_A, NODE_A, TTL, finished, ref, started

from perdure.api.names import InstallationId, Kind
from perdure.ledger.agent import PostgresAgentLedger
from perdure.ledger.controller import PostgresControllerLedger
from perdure.ledger.database import Database
from perdure.ledger.history import HistoryQuery, read_history
from perdure.ledger.migrate import migrate
from perdure.plan.world import Op

pytestmark = pytest.mark.env

QUERY = HistoryQuery(Kind.BOT, "team-a", "bot")


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[PostgresAgentLedger]:
    async with Database(database_url) as database:
        await migrate(database)
        yield PostgresAgentLedger(database, InstallationId("cluster"), NODE_A)


async def test_all_lives_of_a_name_are_told_newest_first(ledger: PostgresAgentLedger, database_url: str) -> None:
    await ledger.apply([started(ref("old"), at=10), finished(ref("old"), at=11)], NAME_A)
    await ledger.apply([started(ref("new"), at=30)], NAME_A)
    await ledger.apply([finished(ref("old"), 2, at=20, message="why")], NAME_A)
    await ledger.apply([started(ref("x", name="other")), started(ref("y", kind=Kind.GAME))], NAME_A)
    rows = await read_history(database_url, QUERY)
    assert [(row.uid, row.op, row.outcome) for row in rows] == [
        ("new", "start", None),
        ("old", None, "success"),
        ("old", "start", "success"),
    ]
    assert rows[0].started_at == datetime.fromtimestamp(30, UTC)
    assert rows[0].finished_at is None
    assert rows[1].message == "why"
    assert (rows[2].before, rows[2].after, rows[2].source, rows[2].node_name) == ("Pending", "Running", "kubectl", "a")


async def test_a_limit_keeps_the_newest(ledger: PostgresAgentLedger, database_url: str) -> None:
    await ledger.apply([started(ref(), n, at=float(n)) for n in range(10)], NAME_A)
    rows = await read_history(database_url, HistoryQuery(Kind.BOT, "team-a", "bot", limit=2))
    assert [row.id for row in rows] == ["uid-1/9", "uid-1/8"]


async def test_what_was_done_under_a_lease_shows_its_fence(ledger: PostgresAgentLedger, database_url: str) -> None:
    lease = await ledger.acquire("key", TTL)
    await ledger.begin(started(ref(), op=Op.PURGE), NAME_A, lease)
    later = await ledger.acquire("key", TTL)
    await ledger.begin(started(ref(), op=Op.PURGE), NAME_A, later)
    await ledger.finish(finished(ref()), NAME_A, later, release=True)
    rows = await read_history(database_url, QUERY)
    assert [(row.op, row.fence, row.outcome) for row in rows] == [("purge", later.fence, "success")]


async def test_a_forced_release_is_told_with_its_reason(ledger: PostgresAgentLedger, database_url: str) -> None:
    async with Database(database_url) as database:
        controller = PostgresControllerLedger(database, InstallationId("cluster"))
        await controller.force_release(ref(), "the node burnt down")
        await controller.force_release(ref(), "again")
    rows = await read_history(database_url, QUERY)
    assert [(row.op, row.source, row.message) for row in rows] == [("force_release", "kubectl", "the node burnt down")]


async def test_one_cluster_can_be_asked_for(ledger: PostgresAgentLedger, database_url: str) -> None:
    await ledger.apply([started(ref())], NAME_A)
    for installation, count in (("cluster", 1), ("another", 0)):
        query = HistoryQuery(Kind.BOT, "team-a", "bot", installation=InstallationId(installation))
        assert len(await read_history(database_url, query)) == count
