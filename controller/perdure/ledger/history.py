"""What was done to a runtime, newest first: the query behind `perdure history KIND/NAME`. Reads only.

By name, not by uid: the answer tells of every life that the name had, also of objects that are long gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import msgspec
from psycopg import sql

from perdure.api.names import InstallationId, Kind
from perdure.ledger.database import Database, DatabaseSettings

_READ = sql.SQL("""
SELECT id, uid, kind, namespace, name, node_name, op, source, fence, before, after, outcome, error_code, message, image,
       snapshot_key, started_at, finished_at
  FROM operations
 WHERE kind = %(kind)s AND namespace = %(namespace)s AND name = %(name)s
   AND (%(installation)s::text IS NULL OR installation = %(installation)s)
 ORDER BY happened_at DESC, id DESC
 LIMIT %(limit)s
""")


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    kind: Kind
    namespace: str
    name: str
    limit: int = 50
    """Most rows that are returned."""
    installation: InstallationId | None = None
    """None: of every cluster that this ledger serves."""


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One operation. What is not known is None: `finished_at` of one under way, `op` of one whose intent was lost."""

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
    started_at: datetime | None
    """With time zone."""
    finished_at: datetime | None


async def read_history(url: str, query: HistoryQuery) -> list[HistoryRow]:
    """Newest first. Opens a connection of its own; raises `LedgerUnavailable`."""
    async with Database(url, DatabaseSettings(connections=1)) as database:
        rows = await database.rows(
            f"reading the history of {query.kind} {query.namespace}/{query.name}",
            _READ,
            {
                "kind": query.kind,
                "namespace": query.namespace,
                "name": query.name,
                "installation": query.installation,
                "limit": query.limit,
            },
        )
    return [msgspec.convert(row, HistoryRow) for row in rows]
