"""What happened to containers: the query behind `perdure history --health`. Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import msgspec
from psycopg import sql

from perdure.api.names import Kind
from perdure.ledger.database import Database
from perdure.ledger.history import READER, HistoryQuery, conditions, in_utc, parameters

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
    """Newest first. The query must ask for nothing that is of operations alone (operations, outcomes, sources, causes).
    Raises `LedgerUnavailable`."""
    where = " AND ".join(conditions(query)) or "true"
    newest = sql.SQL(
        f"SELECT {_COLUMNS} FROM health_events WHERE {where}"
        " ORDER BY happened_at DESC, recorded_at DESC, id LIMIT %(limit)s"
    )
    async with Database(url, READER) as database:
        rows = await database.rows(f"reading the health of {query}", newest, parameters(query))
    return [msgspec.convert(in_utc(row), HealthHistoryRow) for row in rows]
