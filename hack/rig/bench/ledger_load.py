"""What the ledger does per second, and what a question over a long history costs. Called by ``rig.bench.ledger``."""

import asyncio
import hashlib
import json
import random
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from psycopg import sql
from psycopg.pq import Trace

from perdure.api.names import InstallationId, Kind, NamespaceUid, NodeId, NodeName, OperationId, RuntimeRef, Uid
from perdure.api.phases import Phase
from perdure.ledger.agent import PostgresAgentLedger
from perdure.ledger.database import Connection, Database, DatabaseSettings
from perdure.ledger.health_history import health_statement
from perdure.ledger.history import HistoryQuery, page_statement, parameters
from perdure.plan.world import Op, Outcome, Source
from perdure.reconcile.ports.journal import OperationFinished, OperationRow, OperationStarted
from rig.bench.results import Goal, Row, Timing, percentile
from rig.progress import say

CLIENTS = 50
NAMES = 2_000
"""Runtimes that the long history is of."""
DAYS = 120
"""How long it is."""
TRANSITIONS_GOAL = 1_000.0
HISTORY_GOAL_MS = 50.0
NODE, NAME = NodeId("bench"), NodeName("bench")
FILL_SECONDS = 900.0
_CLUSTER = InstallationId("bench")

_FILL = """
SELECT make_operation_months((now() - interval '{days} days')::date, now()::date);
INSERT INTO operations (installation, id, uid, namespace_uid, kind, namespace, name, node_name, op, source, before, after,
                        outcome, error_code, message, image, snapshot_key, started_at, finished_at, recorded_at, month)
SELECT 'bench', md5(n::text), md5('uid-' || n % {names})::uuid::text, 'ns', 'BotRuntime',
       'ns-' || n % 20, 'bot-' || n % {names}, 'node-1',
       CASE n % 1000 WHEN 7 THEN 'purge' ELSE (ARRAY['start', 'stop', 'restart'])[1 + n % 3] END,
       CASE WHEN n % 1000 = 3 THEN 'admin_cli' WHEN n % 10 < 6 THEN 'node_event' ELSE 'kubectl' END, 'Stopped', 'Running',
       CASE n % 100 WHEN 0 THEN 'failure' ELSE 'success' END, CASE n % 100 WHEN 0 THEN 'StoreFull' END,
       'a sentence of the usual length about what was done and why', 'registry/image:1', 'br-uid-1', at, at + interval '1 s',
       at, date_trunc('month', at AT TIME ZONE 'UTC')
  FROM generate_series(1, {rows}) AS n,
       LATERAL (SELECT now() - interval '{days} days' * (1 - n::double precision / {rows})) AS moment (at);
SELECT make_health_months((now() - interval '{days} days')::date, now()::date);
INSERT INTO health_events (installation, id, uid, namespace_uid, kind, namespace, name, node_name, container, event, message,
                           happened_at, recorded_at, month)
SELECT installation, id, uid, namespace_uid, kind, namespace, name, node_name, 'container', 'exited', message, started_at,
       recorded_at, month
  FROM operations WHERE installation = 'bench' AND id < '4';
ANALYZE operations, health_events
"""


@dataclass(frozen=True, slots=True)
class Load:
    """Seconds of each transition, in the order they ended, and of all of them together."""

    each: list[float]
    wall: float
    client_cpu: float


async def transitions(url: str, count: int, cpu: Callable[[], Mapping[str, float]]) -> list[Row]:
    """``CLIENTS`` clients at once: a runtime's state change with the operation's end, one statement, committed."""
    say(f"    {count} state changes by {CLIENTS} clients")
    settings = DatabaseSettings(connections=CLIENTS, connect_seconds=30.0, deadline_seconds=60.0)
    async with Database(url, settings) as database:
        ledger = PostgresAgentLedger(database, _CLUSTER, NODE)
        await _load(ledger, 10 * CLIENTS, whole=False)  # connections are made, plans are cached, by now
        before = cpu()
        single = await _load(ledger, count, whole=False)
        server = cpu().get("postgres", 0.0) - before.get("postgres", 0.0)
        both = await _load(ledger, count, whole=True)
    trips = await _round_trips(url)
    done = len(single.each)
    notes = (
        f"{CLIENTS} connections of one Python process on the same cores as the server, fsync and synchronous_commit on; "
        "a state change is FINISHED: the operation's row and the runtime's in one statement, found by id over all months"
    )
    timing = Timing("state change", single.each, notes=notes)
    return [
        Row("state changes", "/s", done / single.wall, done, goal=Goal(TRANSITIONS_GOAL, better="higher"), notes=notes),
        *timing.rows(),
        Row("state change: CPU of PostgreSQL", "ms", server * 1000 / done, done, notes=notes),
        Row("state change: CPU of the client", "ms", single.client_cpu * 1000 / done, done, notes=notes),
        Row("state change: round trips", "", trips, 1, notes="turns of the conversation, in libpq's own trace"),
        Row("intent and end, a transaction each", "/s", len(both.each) / both.wall, len(both.each), notes=notes),
        Row("intent and end, p99", "ms", percentile(both.each, 99) * 1000, len(both.each), notes=notes),
    ]


async def _load(ledger: PostgresAgentLedger, count: int, *, whole: bool) -> Load:
    each: list[float] = []
    numbers = iter(range(count))

    async def client() -> None:
        for _number in numbers:
            began = time.perf_counter()
            start, end = _operation()
            if whole:
                await ledger.apply([start], NAME)
            await ledger.apply([end], NAME)
            each.append(time.perf_counter() - began)

    began, cpu = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client())
    return Load(each, time.perf_counter() - began, time.process_time() - cpu)


def _operation() -> tuple[OperationRow, OperationRow]:
    uid = Uid(f"uid-{random.randrange(NAMES)}")
    ref = RuntimeRef(Kind.BOT, "ns", f"bot-{uid}", uid, NamespaceUid("ns"))
    name, now = OperationId(str(uuid.uuid4())), time.time()
    return (
        OperationStarted(name, ref, Op.START, Source.KUBECTL, now, Phase.PENDING, "image:1"),
        OperationFinished(name, ref, now, Outcome.SUCCESS, Phase.RUNNING, image="image:1"),
    )


async def _round_trips(url: str) -> float:
    """Of one state change on a connection that is open: how often the client spoke after the server had."""
    with tempfile.TemporaryFile("w+") as trace:
        async with Database(url, DatabaseSettings(connections=1)) as database:
            ledger = PostgresAgentLedger(database, _CLUSTER, NODE)
            await ledger.apply([_operation()[1]], NAME)
            await database.run("tracing", _then(lambda connection: _trace(connection, trace.fileno())))
            await ledger.apply([_operation()[1]], NAME)
            await database.run("tracing no more", _then(lambda connection: connection.pgconn.untrace()))
        trace.seek(0)
        sides = [line.split("\t", 1)[0] for line in trace if line[:1] in "FB"]
    return float(sum(1 for before, side in zip(["B", *sides], sides, strict=False) if (before, side) == ("B", "F")))


def _trace(connection: Connection, descriptor: int) -> None:
    connection.pgconn.trace(descriptor)
    connection.pgconn.set_trace_flags(Trace.SUPPRESS_TIMESTAMPS)


def _then(act: Callable[[Connection], None]) -> Callable[[Connection], Awaitable[None]]:
    async def work(connection: Connection) -> None:
        act(connection)

    return work


async def histories(url: str, rows: int, n: int) -> list[Row]:
    """Questions over ``rows`` operations of ``NAMES`` runtimes: planning and execution, as the server counts them."""
    say(f"    filling in {rows} operations")
    patient = DatabaseSettings(connections=1, statement_seconds=FILL_SECONDS, deadline_seconds=FILL_SECONDS + 10)
    async with Database(url, patient) as database:
        fill = _FILL.format(days=DAYS, names=NAMES, rows=rows)

        async def work(connection: Connection) -> None:
            await connection.execute(fill.encode())

        await database.run("filling in operations", work)
        found: list[Row] = []
        notes = f"EXPLAIN ANALYZE, {rows} operations of {DAYS} days and a quarter as many health events, warm cache"
        for statement, questions in ((page_statement, _QUESTIONS), (health_statement, _HEALTH_QUESTIONS)):
            for name, make in questions.items():
                say(f"    {n} times: {name}")
                found += await _ask(database, name, partial(_stated, statement, make), n, notes)
    return found


Question = tuple[sql.SQL, Mapping[str, object]]


def _stated(statement: Callable[[HistoryQuery], sql.SQL], make: Callable[[], HistoryQuery]) -> Question:
    query = make()
    return statement(query), parameters(query)


async def _ask(database: Database, name: str, make: Callable[[], Question], n: int, notes: str) -> list[Row]:
    milliseconds = []
    for _ in range(n):
        statement, values = make()
        explain = sql.SQL("EXPLAIN (ANALYZE, FORMAT JSON) ") + statement
        (row,) = await database.rows("explaining", sql.SQL(explain.as_string()), values)
        plan = row["QUERY PLAN"][0] if not isinstance(row["QUERY PLAN"], str) else json.loads(row["QUERY PLAN"])[0]
        milliseconds.append(plan["Planning Time"] + plan["Execution Time"])
    return [
        Row(f"history, {name}: p50 in the server", "ms", percentile(milliseconds, 50), n, notes=notes),
        Row(f"history, {name}: p95 in the server", "ms", percentile(milliseconds, 95), n, goal=Goal(HISTORY_GOAL_MS),
            notes=notes),
    ]  # fmt: skip


def _named(**more: object) -> HistoryQuery:
    number = random.randrange(NAMES)
    query = {"kind": Kind.BOT, "namespace": f"ns-{number % 20}", "name": f"bot-{number}", **more}
    return HistoryQuery(**query)  # type: ignore[arg-type]


def _uid() -> str:
    """As the server made them."""
    return str(uuid.UUID(hashlib.md5(f"uid-{random.randrange(NAMES)}".encode(), usedforsecurity=False).hexdigest()))


def _ago(days: float) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


_QUESTIONS: dict[str, Callable[[], HistoryQuery]] = {
    "one runtime": _named,
    "one runtime, failures": lambda: _named(outcomes=("failure",)),
    "one runtime, a day of last month": lambda: _named(since=_ago(31), until=_ago(30)),
    "one life by its uid": lambda: HistoryQuery(uid=_uid()),
    "one life by the beginning of its uid": lambda: HistoryQuery(uid=_uid()[:8]),
    "everything, newest": HistoryQuery,
    "one namespace, newest": lambda: HistoryQuery(namespace=f"ns-{random.randrange(20)}"),
    "a namespace that never was": lambda: HistoryQuery(namespace="never"),
    "everything, failures of a day": lambda: HistoryQuery(outcomes=("failure",), since=_ago(1), limit=1000),
    "everything, a usual source": lambda: HistoryQuery(sources=("node_event",)),
    "everything, a rare source": lambda: HistoryQuery(sources=("admin_cli",)),
    "everything, a source that never was": lambda: HistoryQuery(sources=("auto_ttl",)),
    "everything, two sources": lambda: HistoryQuery(sources=("auto_ttl", "admin_cli")),
    "everything, a rare operation": lambda: HistoryQuery(ops=("purge",)),
    "everything, an outcome that never was": lambda: HistoryQuery(outcomes=("superseded",)),
}
_HEALTH_QUESTIONS: dict[str, Callable[[], HistoryQuery]] = {
    "--health, one runtime": _named,
    "--health, everything": HistoryQuery,
    "--health, one namespace": lambda: HistoryQuery(namespace=f"ns-{random.randrange(20)}"),
    "--health, a namespace that never was": lambda: HistoryQuery(namespace="never"),
    "--health, one life by the beginning of its uid": lambda: HistoryQuery(uid=_uid()[:8]),
}
