"""What happened to containers: the query behind `perdure history --health`. Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import msgspec
from psycopg import sql

from perdure.api.names import Kind
from perdure.ledger.database import Database
from perdure.ledger.history import READER, HistoryQuery, conditions, in_utc, order, parameters

_COLUMNS = (
    "id, uid, kind, namespace, name, node_name, container, event, probe, exit_code, message, happened_at, recorded_at"
)


@dataclass(frozen=True, slots=True)
class HealthHistoryRow:
    """One event."""

    id: str
    uid: str
    kind: Kind
    namespace: str
    name: str
    node_name: str
    container: str
    event: str
    probe: str | None
    exit_code: int | None
    message: str | None
    happened_at: datetime
    """By the node's clock; in UTC, as all times here."""
    recorded_at: datetime


async def read_health(url: str, query: HistoryQuery) -> list[HealthHistoryRow]:
    """Newest first, as operations are. The query must ask for nothing that is of operations alone (operations, outcomes,
    sources, causes). Raises `LedgerUnavailable`."""
    async with Database(url, READER) as database:
        rows = await database.rows(f"reading the health of {query}", health_statement(query), parameters(query))
    return [msgspec.convert(in_utc(row), HealthHistoryRow) for row in rows]


def health_statement(query: HistoryQuery) -> sql.SQL:
    """The newest events."""
    where = " AND ".join(conditions(query)) or "true"
    return sql.SQL(f"SELECT {_COLUMNS} FROM health_events WHERE {where} ORDER BY {order(query)} LIMIT %(limit)s")
