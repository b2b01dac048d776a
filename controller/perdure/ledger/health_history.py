"""What happened to containers: the query behind `perdure history --health`. Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import msgspec
from psycopg import sql

from perdure.api.names import Kind
from perdure.ledger.database import Database
from perdure.ledger.history import READER, HistoryQuery

_NEWEST = sql.SQL("""
SELECT id, uid, kind, namespace, name, node_name, container, event, probe, exit_code, message, happened_at, recorded_at
  FROM health_events
 WHERE (%(kind)s::text IS NULL OR kind = %(kind)s) AND (%(namespace)s::text IS NULL OR namespace = %(namespace)s)
   AND (%(name)s::text IS NULL OR name = %(name)s) AND uid LIKE %(uid)s || '%%'
   AND (%(since)s::timestamptz IS NULL OR happened_at >= %(since)s)
   AND (%(until)s::timestamptz IS NULL OR happened_at < %(until)s)
   AND (%(installation)s::text IS NULL OR installation = %(installation)s)
 ORDER BY happened_at DESC, recorded_at DESC, id LIMIT %(limit)s
""")


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
    """By the node's clock."""
    recorded_at: datetime


async def read_health(url: str, query: HistoryQuery) -> list[HealthHistoryRow]:
    """Newest first. Of the query, operations, outcomes and sources are not looked at. Raises `LedgerUnavailable`."""
    parameters = {
        "kind": query.kind,
        "namespace": query.namespace,
        "name": query.name,
        "uid": query.uid,
        "since": query.since,
        "until": query.until,
        "installation": query.installation,
        "limit": query.limit,
    }
    async with Database(url, READER) as database:
        rows = await database.rows(f"reading the health of {query}", _NEWEST, parameters)
    return [msgspec.convert(row, HealthHistoryRow) for row in rows]
