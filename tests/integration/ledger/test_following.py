"""Following the history: each row once when it is begun and once when it has ended, nothing missed, nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

import psycopg
import pytest
from tests.integration.ledger.samples import NAME_A, NODE_A, finished, ref, started

from perdure.api.names import InstallationId, Kind
from perdure.ledger.agent import PostgresAgentLedger
from perdure.ledger.database import Database
from perdure.ledger.following import Follower
from perdure.ledger.history import HistoryQuery, HistoryRow
from perdure.ledger.migrate import migrate
from perdure.plan.world import Op

pytestmark = pytest.mark.env

BOT = HistoryQuery(Kind.BOT, "team-a", "bot")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as it:
        await migrate(it)
        yield it


@pytest.fixture
def ledger(database: Database) -> PostgresAgentLedger:
    return PostgresAgentLedger(database, InstallationId("cluster"), NODE_A)


def told(rows: Sequence[HistoryRow]) -> list[tuple[str, str | None]]:
    return [(row.id, row.outcome) for row in rows]


async def test_a_row_is_told_when_it_begins_and_when_it_ends(database: Database, ledger: PostgresAgentLedger) -> None:
    await ledger.apply([started(ref(), 1, at=1), finished(ref(), 1, at=2), started(ref(), 2, at=3)], NAME_A)
    follower = Follower(database, BOT)
    assert told(await follower.first()) == [("uid-1/1", "success"), ("uid-1/2", None)]
    assert await follower.news() == []
    await ledger.apply([finished(ref(), 2, at=4), started(ref(), 3, at=5), started(ref("x", name="other"))], NAME_A)
    assert told(await follower.news()) == [("uid-1/2", "success"), ("uid-1/3", None)]
    assert await follower.news() == []
    await ledger.apply([started(ref(), 3, at=5), finished(ref(), 3, at=6), finished(ref(), 3, at=6)], NAME_A)
    assert told(await follower.news()) == [("uid-1/3", "success")]
    assert await follower.news() == []


async def test_what_came_before_the_newest_is_not_news_but_its_end_is(
    database: Database, ledger: PostgresAgentLedger
) -> None:
    await ledger.apply([started(ref(), n, at=float(n)) for n in range(10)], NAME_A)
    follower = Follower(database, HistoryQuery(Kind.BOT, "team-a", "bot", limit=2))
    assert told(await follower.first()) == [("uid-1/8", None), ("uid-1/9", None)]
    assert await follower.news() == []
    await ledger.apply([finished(ref(), 0)], NAME_A)
    assert told(await follower.news()) == [("uid-1/0", "success")]


async def test_an_outcome_that_is_waited_for_is_told_when_it_is_there(
    database: Database, ledger: PostgresAgentLedger
) -> None:
    follower = Follower(database, HistoryQuery(outcomes=("success",), ops=("purge",)))
    await ledger.apply([started(ref(), 1, op=Op.PURGE), started(ref(), 2)], NAME_A)
    assert await follower.first() == []
    await ledger.apply([started(ref(), 3, op=Op.PURGE)], NAME_A)
    assert await follower.news() == []
    await ledger.apply([finished(ref(), n) for n in (1, 2, 3)], NAME_A)
    assert told(await follower.news()) == [("uid-1/1", "success"), ("uid-1/3", "success")]


async def test_a_row_that_was_committed_late_is_not_missed(
    database: Database, ledger: PostgresAgentLedger, database_url: str
) -> None:
    """It bears the time of the beginning of its transaction, which lies before rows that were told already."""
    follower = Follower(database, BOT)
    await follower.first()
    async with await psycopg.AsyncConnection.connect(database_url) as slow:
        await slow.execute(
            "INSERT INTO operations (installation, id, uid, namespace_uid, kind, namespace, name, node_name, started_at, month)"
            " VALUES ('cluster', 'late', 'uid-1', 'ns-1', 'BotRuntime', 'team-a', 'bot', 'a', now(),"
            " operation_month('cluster', 'late', 0))"
        )
        await ledger.apply([started(ref(), 1)], NAME_A)
        assert told(await follower.news()) == [("uid-1/1", None)]
    assert told(await follower.news()) == [("late", None)]
    assert await follower.news() == []


async def test_nothing_is_missed_or_told_twice_under_load(database_url: str, database: Database) -> None:
    follower = Follower(database, HistoryQuery())
    await follower.first()
    begun: list[str] = []
    ended: list[str] = []
    now = datetime.now(UTC).timestamp()

    async def write(node: int) -> None:
        async with Database(database_url) as own:
            ledger = PostgresAgentLedger(own, InstallationId("cluster"), NODE_A)
            for n in range(60):
                await ledger.apply([started(ref(f"{node}"), n, at=now)], NAME_A)
                await ledger.apply([finished(ref(f"{node}"), n, at=now)], NAME_A)

    def keep(rows: Sequence[HistoryRow]) -> None:
        for row in rows:
            (ended if row.outcome else begun).append(row.id)

    async with asyncio.TaskGroup() as group:
        writers = [group.create_task(write(node)) for node in range(4)]
        while not all(writer.done() for writer in writers):
            keep(await follower.news())
    keep(await follower.news())
    assert sorted(ended) == sorted(f"{node}/{n}" for node in range(4) for n in range(60))
    assert len(begun) == len(set(begun))
