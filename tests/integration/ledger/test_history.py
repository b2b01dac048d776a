"""`perdure history`: every life of a name, newest first, also what is half known."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from tests.integration.ledger.samples import NAME_A, NODE_A, TTL, finished, ref, started

from perdure.api.names import InstallationId, Kind
from perdure.ledger.agent import PostgresAgentLedger
from perdure.ledger.controller import PostgresControllerLedger
from perdure.ledger.database import Database
from perdure.ledger.history import UNDER_WAY, HistoryQuery, find_lives, read_history
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


async def test_what_one_cause_brought_about_is_found_by_its_id(ledger: PostgresAgentLedger, database_url: str) -> None:
    stop, clean = (replace(started(ref(), n, at=float(n)), correlation="cause-1") for n in (1, 2))
    await ledger.apply([stop, finished(ref(), 1), started(ref(), 3)], NAME_A)
    lease = await ledger.acquire("key", TTL)
    await ledger.begin(clean, NAME_A, lease)
    await ledger.apply([finished(ref(), 2)], NAME_A)
    await ledger.apply([finished(ref("other"), 4), replace(started(ref("other"), 4), correlation="cause-2")], NAME_A)
    rows = await read_history(database_url, HistoryQuery(correlation="cause-1"))
    assert sorted(row.id for row in rows) == ["uid-1/1", "uid-1/2"]
    assert [row.id for row in await read_history(database_url, HistoryQuery(correlation="cause-2"))] == ["other/4"]
    everything = {row.id: row.correlation for row in await read_history(database_url, HistoryQuery())}
    assert everything["uid-1/3"] is None


async def test_a_forced_release_is_told_with_its_reason(ledger: PostgresAgentLedger, database_url: str) -> None:
    async with Database(database_url) as database:
        controller = PostgresControllerLedger(database, InstallationId("cluster"))
        await controller.force_release(ref(), "the node burnt down")
        await controller.force_release(ref(), "again")
    rows = await read_history(database_url, QUERY)
    assert [(row.op, row.source, row.message) for row in rows] == [("force_release", "kubectl", "the node burnt down")]


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        (HistoryQuery(), ["d/1", "c/1", "b/2", "b/1", "a/1"]),
        (HistoryQuery(kind=Kind.GAME), ["d/1"]),
        (HistoryQuery(name="bot"), ["b/2", "b/1", "a/1"]),
        (HistoryQuery(namespace="team-b"), []),
        (HistoryQuery(uid="b"), ["b/2", "b/1"]),
        (HistoryQuery(ops=("purge",)), ["b/2"]),
        (HistoryQuery(ops=("purge", "stop")), ["c/1", "b/2"]),
        (HistoryQuery(outcomes=("success",)), ["b/1", "a/1"]),
        (HistoryQuery(outcomes=(UNDER_WAY,)), ["d/1", "c/1", "b/2"]),
        (HistoryQuery(outcomes=(UNDER_WAY, "success"), ops=("start",)), ["d/1", "b/1", "a/1"]),
        (HistoryQuery(sources=("auto_reconcile",)), []),
        (HistoryQuery(sources=("kubectl",), limit=2), ["d/1", "c/1"]),
        (HistoryQuery(since=datetime.fromtimestamp(30, UTC)), ["d/1", "c/1", "b/2"]),
        (HistoryQuery(until=datetime.fromtimestamp(30, UTC)), ["b/1", "a/1"]),
    ],
)
async def test_filters(ledger: PostgresAgentLedger, database_url: str, query: HistoryQuery, ids: list[str]) -> None:
    await ledger.apply([started(ref("a"), at=10), finished(ref("a"), at=11)], NAME_A)
    await ledger.apply([started(ref("b"), at=20), finished(ref("b"), at=21)], NAME_A)
    await ledger.apply([started(ref("b"), 2, op=Op.PURGE, at=30)], NAME_A)
    await ledger.apply([started(ref("c", name="other"), op=Op.STOP, at=40)], NAME_A)
    await ledger.apply([started(ref("d", name="game", kind=Kind.GAME), at=50)], NAME_A)
    assert [row.id for row in await read_history(database_url, query)] == ids


async def test_times_are_utc_whatever_time_the_server_keeps(ledger: PostgresAgentLedger, database_url: str) -> None:
    """Two operations within the hour that Berlin had twice: an hour apart, and in order."""
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    for n, at in enumerate((first, first + timedelta(hours=1)), 1):
        await ledger.apply([started(ref(), n, at=at.timestamp())], NAME_A)
    there = f"{database_url}&options=-c%20TimeZone%3DEurope/Berlin"
    rows = await read_history(there, QUERY)
    assert [row.started_at for row in rows] == [first + timedelta(hours=1), first]
    assert {row.started_at.utcoffset() for row in rows if row.started_at} == {timedelta()}
    (only,) = await read_history(there, HistoryQuery(since=first + timedelta(minutes=30)))
    assert only.started_at == first + timedelta(hours=1)


async def test_lives_of_a_name_are_found_wherever_they_were(ledger: PostgresAgentLedger, database_url: str) -> None:
    for of in (ref("a"), ref("b"), ref("c", kind=Kind.GAME), ref("d", name="other")):
        await ledger.apply([finished(of)], NAME_A)
    assert {(life.kind, life.uid) for life in await find_lives(database_url, "bot")} == {
        (Kind.BOT, "a"),
        (Kind.BOT, "b"),
        (Kind.GAME, "c"),
    }


async def test_one_cluster_can_be_asked_for(ledger: PostgresAgentLedger, database_url: str) -> None:
    await ledger.apply([started(ref())], NAME_A)
    for installation, count in (("cluster", 1), ("another", 0)):
        query = HistoryQuery(Kind.BOT, "team-a", "bot", installation=InstallationId(installation))
        assert len(await read_history(database_url, query)) == count
