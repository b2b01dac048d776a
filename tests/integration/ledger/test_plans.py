"""What people ask a filled ledger is answered by indexes: how long it has grown does not count."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta

import pytest
from psycopg import sql

from perdure.api.names import Kind
from perdure.ledger import history, listing, overview
from perdure.ledger.database import Connection, Database, DatabaseSettings
from perdure.ledger.health_history import health_statement
from perdure.ledger.history import HistoryQuery, page_statement, parameters
from perdure.ledger.migrate import migrate

pytestmark = pytest.mark.env

ROWS = 30_000
FEW = 500
"""Blocks that an answer may cost: a row each on a page of its own, and the way to it in an index. The tables have thousands."""
FILL = f"""
INSERT INTO operations (installation, id, uid, namespace_uid, kind, namespace, name, node_name, op, source, outcome,
                        started_at, finished_at, recorded_at, month)
SELECT 'i', n::text, md5((n % 3000)::text)::uuid::text, 'ns', 'BotRuntime',
       CASE WHEN n < 100 THEN 'quiet' ELSE 'ns-' || n % 5 END, 'bot-' || n % 3000, 'node', 'start', 'kubectl', 'success',
       at, at, at, date_trunc('month', now() AT TIME ZONE 'UTC')
  FROM generate_series(1, {ROWS}) AS n, LATERAL (SELECT now() - make_interval(secs => {ROWS} - n)) AS moment (at);
INSERT INTO health_events (installation, id, uid, namespace_uid, kind, namespace, name, node_name, container, event,
                           happened_at, recorded_at, month)
SELECT installation, id, uid, namespace_uid, kind, namespace, name, node_name, 'container', 'exited', started_at,
       recorded_at, month FROM operations;
INSERT INTO runtimes (installation, uid, namespace_uid, kind, namespace, name, node_name, actual_state, snapshot_key,
                      released_at, force_released_at, created_at)
SELECT 'i', n::text, 'ns', 'BotRuntime', 'ns-' || n % 5, 'bot-' || n % 3000, 'node', 'Running', 'key',
       CASE WHEN n % 100 <> 0 THEN now() END, CASE WHEN n % 1000 = 500 THEN now() END, now() - make_interval(secs => n)
  FROM generate_series(1, {ROWS}) AS n;
INSERT INTO bindings (installation, uid, node_name, node_id, bound_at)
SELECT 'i', n::text, 'node-' || n % 50, 'id-' || n % 50, now() - make_interval(secs => n)
  FROM generate_series(1, {ROWS}) AS n;
INSERT INTO archives (installation, sequence, operation, state, uid, namespace_uid, kind, namespace, name, node_id,
                      snapshot_key, image, image_digest, chain_id, begun_at)
SELECT 'i', n, n::text, CASE WHEN n % 100 = 0 THEN 'verified' ELSE 'purged' END, n::text, 'ns', 'BotRuntime',
       CASE WHEN n < 100 THEN 'quiet' ELSE 'ns-' || n % 5 END, 'bot-' || n % 3000, 'id-' || n % 50, 'key', 'image', '', '',
       now() - make_interval(secs => {ROWS} - n)
  FROM generate_series(1, {ROWS}) AS n;
"""
YESTERDAY = datetime.now(UTC) - timedelta(days=1)
LIST = {"kind": None, "name": None, "namespace": None, "limit": 50}
QUERIES = {
    "everything": HistoryQuery(),
    "a quiet namespace": HistoryQuery(namespace="quiet"),
    "a namespace that never was": HistoryQuery(namespace="never"),
    "a busy namespace": HistoryQuery(namespace="ns-1"),
    "a namespace, since yesterday": HistoryQuery(namespace="quiet", since=YESTERDAY),
    "a name": HistoryQuery(Kind.BOT, "ns-1", "bot-1"),
    "the beginning of a uid": HistoryQuery(uid="c4ca4238"),
}
QUESTIONS: dict[str, tuple[sql.SQL, Mapping[str, object]]] = {
    **{name: (page_statement(query), parameters(query)) for name, query in QUERIES.items()},
    **{f"health: {name}": (health_statement(query), parameters(query)) for name, query in QUERIES.items()},
    "lives of a name": (history._LIVES, {"name": "bot-7"}),
    "lives of a name that never was": (history._LIVES, {"name": "never"}),
    "archives": (listing._READ, LIST),
    "archives of a quiet namespace": (listing._READ, {**LIST, "namespace": "quiet"}),
    "archives of a namespace that never was": (listing._READ, {**LIST, "namespace": "never"}),
    "archives of a name": (listing._READ, {**LIST, "namespace": "ns-1", "kind": "BotRuntime", "name": "bot-1"}),
    "top": (overview._READ, {"hours": 24}),
}


@pytest.fixture
async def filled(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url, DatabaseSettings(statement_seconds=120, deadline_seconds=130)) as database:
        await migrate(database)

        async def fill(connection: Connection) -> None:
            await connection.execute(FILL.encode())
            await connection.execute("VACUUM ANALYZE operations, health_events, runtimes, bindings, archives")

        await database.run("filling a ledger", fill)
        yield database


async def test_an_answer_costs_a_few_blocks(filled: Database) -> None:
    blocks = {}
    for name, (statement, values) in QUESTIONS.items():
        explain = sql.SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) ") + statement
        (row,) = await filled.rows("explaining", sql.SQL(explain.as_string()), values)
        plan = row["QUERY PLAN"][0]["Plan"]
        blocks[name] = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    assert {name: count for name, count in blocks.items() if count > FEW} == {}
