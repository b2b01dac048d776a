"""The whole ledger at a glance: the query behind `perdure top`. Reads only, in one round trip.

It tells what the ledger knows: what no agent has written yet (a container that broke a moment ago) is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import msgspec
from psycopg import sql

from perdure.api.names import Kind
from perdure.ledger.database import Database
from perdure.ledger.history import READER

_READ = sql.SQL("""
SELECT now() AS at,
       COALESCE((SELECT json_agg(one ORDER BY kind, phase) FROM (
           SELECT kind, COALESCE(actual_state, '') AS phase, count(*) AS count FROM runtimes
            WHERE released_at IS NULL AND force_released_at IS NULL GROUP BY 1, 2
       ) AS one), '[]') AS runtimes,
       COALESCE((SELECT json_agg(one ORDER BY count DESC, code) FROM (
           SELECT code, count(*) AS count, max(at) AS latest_at,
                  (array_agg(kind || ' ' || namespace || '/' || name ORDER BY at DESC))[1] AS latest
             FROM (
               SELECT COALESCE(error_code, '') AS code, kind, namespace, name, finished_at AS at FROM operations
                WHERE outcome = 'failure' AND finished_at > now() - make_interval(hours => %(hours)s)
                UNION ALL
               SELECT error_code, kind, namespace, name, now() FROM operations
                WHERE finished_at IS NULL AND error_code IS NOT NULL
             ) AS failed
            GROUP BY 1
       ) AS one), '[]') AS failures,
       (SELECT to_json(one) FROM (
           SELECT id, uid, kind, namespace, name, node_name, op, source, started_at, error_code, message FROM operations
            WHERE finished_at IS NULL AND started_at IS NOT NULL ORDER BY started_at LIMIT 1
       ) AS one) AS oldest_under_way,
       (SELECT count(*) FROM operations WHERE finished_at IS NULL) AS under_way,
       COALESCE((SELECT json_agg(one ORDER BY node, state) FROM (
           SELECT COALESCE((SELECT node_name FROM bindings WHERE bindings.node_id = archives.node_id
                             ORDER BY bound_at DESC LIMIT 1), node_id, '') AS node,
                  state, count(*) AS count, sum(bytes)::bigint AS bytes
             FROM archives WHERE state <> 'purged' GROUP BY node_id, state
       ) AS one), '[]') AS archives,
       COALESCE((SELECT json_agg(one ORDER BY node) FROM (
           SELECT COALESCE(node_name, '') AS node, count(*) AS count FROM runtimes
            WHERE force_released_at IS NOT NULL AND released_at IS NULL AND snapshot_key IS NOT NULL GROUP BY 1
       ) AS one), '[]') AS orphans
""")

FAILURE_HOURS = 24


@dataclass(frozen=True, slots=True)
class PhaseCount:
    """Lives that are not over."""

    kind: Kind
    phase: str
    """After the newest operation that ended; empty: none has."""
    count: int


@dataclass(frozen=True, slots=True)
class FailureCount:
    """Of the last `FAILURE_HOURS`, and those that go on failing now, whenever they began."""

    code: str
    count: int
    latest_at: datetime
    latest: str
    """Which runtime failed so last."""


@dataclass(frozen=True, slots=True)
class UnderWay:
    """The operation that was begun first among those without an end."""

    id: str
    uid: str
    kind: Kind
    namespace: str
    name: str
    node_name: str
    op: str | None
    source: str | None
    started_at: datetime
    error_code: str | None
    """Why it is not over yet, and `message` for people; None: nothing has failed."""
    message: str | None


@dataclass(frozen=True, slots=True)
class ArchiveCount:
    node: str
    """The only node that can read them; empty: any can."""
    state: str
    count: int
    bytes: int


@dataclass(frozen=True, slots=True)
class OrphanCount:
    """Lives that a person gave up although their data was neither archived nor purged."""

    node: str
    count: int


@dataclass(frozen=True, slots=True)
class Overview:
    at: datetime
    """By PostgreSQL's clock."""
    runtimes: tuple[PhaseCount, ...]
    failures: tuple[FailureCount, ...]
    under_way: int
    oldest_under_way: UnderWay | None
    archives: tuple[ArchiveCount, ...]
    orphans: tuple[OrphanCount, ...]


async def read_overview(url: str) -> Overview:
    """Of every cluster that this ledger serves. Raises `LedgerUnavailable`."""
    async with Database(url, READER) as database:
        (row,) = await database.rows("reading the overview of the ledger", _READ, {"hours": FAILURE_HOURS})
    return msgspec.convert(row, Overview)
