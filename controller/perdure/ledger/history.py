"""What was done to runtimes: the queries behind `perdure history`. Reads only.

By name, not by uid: the answer tells of every life that the name had, also of objects that are long gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from psycopg import sql

from perdure.api.names import InstallationId, Kind
from perdure.ledger.database import Database, DatabaseSettings

UNDER_WAY = "under_way"
"""What `HistoryQuery.outcomes` calls an operation that has none yet."""

COLUMNS = """
installation, id, uid, kind, namespace, name, node_name, op, source, fence, before, after, outcome, error_code, message,
image, snapshot_key, correlation, started_at, finished_at, recorded_at
"""

_UID_LENGTH = 36
"""Of the uids of Kubernetes (RFC 4122)."""
_TELLING_LENGTH = 6
"""So many characters of a uid, of 16 kinds each, leave a handful of lives among millions."""

READER = DatabaseSettings(connections=1, connect_seconds=3.0)
"""For a command that a person waits for."""

_LIVES = sql.SQL("""
SELECT kind, namespace, name, uid, created_at FROM runtimes
 WHERE name = %(name)s ORDER BY created_at DESC, uid LIMIT 100
""")


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """What is asked for; None and () ask for any."""

    kind: Kind | None = None
    namespace: str | None = None
    name: str | None = None
    limit: int = 50
    """Most rows that are returned."""
    installation: InstallationId | None = None
    """None: of every cluster that this ledger serves."""
    uid: str = ""
    """The beginning of one: letters, digits and hyphens."""
    ops: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    since: datetime | None = None
    """With time zone, as `until`: when it was begun, by its node's clock."""
    until: datetime | None = None
    """Exclusive."""
    correlation: str | None = None
    """Of one cause."""

    def __str__(self) -> str:
        if self.name is not None:
            return f"{self.kind or 'the runtime'} {self.namespace or '*'}/{self.name}"
        return f"the namespace {self.namespace}" if self.namespace is not None else "all namespaces"


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One operation. What is not known is None: `finished_at` of one under way, `op` of one whose intent was lost."""

    installation: str
    id: str
    uid: str
    kind: Kind
    namespace: str
    name: str
    node_name: str
    op: str | None
    source: str | None
    fence: int | None
    before: str | None
    after: str | None
    outcome: str | None
    error_code: str | None
    message: str | None
    image: str | None
    snapshot_key: str | None
    correlation: str | None
    """The same for all that one cause brought about; what was recorded by older versions has none."""
    started_at: datetime | None
    """In UTC, as all times here."""
    finished_at: datetime | None
    recorded_at: datetime
    """When the ledger first heard of it, by PostgreSQL's clock."""


@dataclass(frozen=True, slots=True)
class Life:
    """One life of a name, whether or not anything was done to it."""

    kind: Kind
    namespace: str
    name: str
    uid: str
    created_at: datetime


async def read_history(url: str, query: HistoryQuery) -> list[HistoryRow]:
    """Newest first: by when it happened for one name, else by when the ledger heard of it. Raises `LedgerUnavailable`."""
    async with Database(url, READER) as database:
        return await read_page(database, query)


async def find_lives(url: str, name: str) -> list[Life]:
    """Lives of that name of any kind and in any namespace, newest first. Raises `LedgerUnavailable`."""
    async with Database(url, READER) as database:
        rows = await database.rows(f"looking for runtimes with the name {name}", _LIVES, {"name": name})
    return [msgspec.convert(in_utc(row), Life) for row in rows]


async def read_page(database: Database, query: HistoryQuery) -> list[HistoryRow]:
    """`read_history` on a database that is open already."""
    rows = await database.rows(f"reading the history of {query}", page_statement(query), parameters(query))
    return [history_row(row) for row in rows]


def page_statement(query: HistoryQuery) -> sql.SQL:
    """The newest rows. There is an index for each order, so that only what is returned is read."""
    where = " AND ".join([*conditions(query), *_outcome_conditions(query)]) or "true"
    return sql.SQL(f"SELECT {COLUMNS} FROM operations WHERE {where} ORDER BY {order(query)} LIMIT %(limit)s")


def order(query: HistoryQuery) -> str:
    """Newest first, by the time that there is an index on for what is asked."""
    column = "recorded_at" if query.name is None else "happened_at"
    if query.name is None and _UID_LENGTH > len(query.uid) >= _TELLING_LENGTH:
        # Few lives begin so: all of theirs are found by uid and put in order. Without this the planner, which cannot
        # know that, walks through everything by time until it has found enough of them.
        column = f"{column} + interval '0'"
    return f"{column} DESC, id DESC"


def conditions(query: HistoryQuery) -> list[str]:
    """All but those on outcomes, which change."""
    equal = ("kind", "namespace", "name", "installation", "correlation")
    found = [f"{column} = %({column})s" for column in equal if getattr(query, column) is not None]
    if query.uid:
        found.append("uid = %(whole_uid)s" if len(query.uid) == _UID_LENGTH else "uid LIKE %(uid)s")
    if query.ops:
        found.append("op = ANY(%(ops)s)")
    if query.sources:
        # With one of them the index has the rows in their order.
        found.append("source = %(source)s" if len(query.sources) == 1 else "source = ANY(%(sources)s)")
    if query.since is not None:
        found.append("happened_at >= %(since)s")
        if query.name is None:
            # Bounds the index that is walked: clocks of nodes are not a day ahead of PostgreSQL's.
            found.append("recorded_at >= %(since)s - interval '1 day'")
    if query.until is not None:
        found.append("happened_at < %(until)s")
    return found


def _outcome_conditions(query: HistoryQuery) -> list[str]:
    if not query.outcomes:
        return []
    if len(query.outcomes) == 1 and UNDER_WAY not in query.outcomes:
        return ["outcome = %(outcome)s"]
    under_way = " OR finished_at IS NULL" if UNDER_WAY in query.outcomes else ""
    return [f"(outcome = ANY(%(outcomes)s){under_way})"]


def has_outcome(query: HistoryQuery, row: HistoryRow) -> bool:
    """What `page_statement` asks of the outcome, asked of a row."""
    return not query.outcomes or (row.outcome or UNDER_WAY) in query.outcomes


def parameters(query: HistoryQuery) -> dict[str, object]:
    return {
        "kind": query.kind,
        "namespace": query.namespace,
        "name": query.name,
        "installation": query.installation,
        "limit": query.limit,
        "uid": f"{query.uid}%",
        "whole_uid": query.uid,
        "ops": list(query.ops),
        "outcomes": list(query.outcomes),
        "outcome": query.outcomes[0] if query.outcomes else None,
        "sources": list(query.sources),
        "source": query.sources[0] if query.sources else None,
        "since": query.since,
        "until": query.until,
        "correlation": query.correlation,
    }


def history_row(row: Mapping[str, Any]) -> HistoryRow:
    """A row of `COLUMNS`, typed."""
    return msgspec.convert(in_utc(row), HistoryRow)


def in_utc(row: Mapping[str, Any]) -> dict[str, Any]:
    """The same; of its times the server's own zone, which may have a summer time, is left behind."""
    return {name: value.astimezone(UTC) if isinstance(value, datetime) else value for name, value in row.items()}
