"""Archives as the catalogue has them: the query behind `perdure archive ls`. Reads only.

Also those that no object stands for: in quarantine, purged, of a namespace that is gone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import msgspec
from psycopg import sql

from perdure.api.names import Kind
from perdure.ledger.database import Database
from perdure.ledger.history import READER, in_utc

_READ = sql.SQL("""
SELECT sequence, state, kind, namespace, name, uid, store,
       COALESCE((SELECT node_name FROM bindings WHERE bindings.node_id = archives.node_id
                  ORDER BY bound_at DESC LIMIT 1), node_id, '') AS node,
       bytes, uncompressed_bytes, entries, empty, retain, image, sha256, object_name, why, begun_at, verified_at
  FROM archives
 WHERE (%(namespace)s::text IS NULL OR namespace = %(namespace)s)
   AND (%(name)s::text IS NULL OR (kind, name) = (%(kind)s, %(name)s))
 ORDER BY begun_at DESC, sequence DESC LIMIT %(limit)s
""")


@dataclass(frozen=True, slots=True)
class ListedArchive:
    """One row of the catalogue."""

    sequence: int
    state: str
    """writing, verified, quarantined, purging or purged."""
    kind: Kind
    namespace: str
    name: str
    uid: str
    store: str
    node: str
    """The only node that can read it; empty: any can."""
    bytes: int
    uncompressed_bytes: int
    entries: int
    empty: bool
    retain: bool
    image: str
    sha256: str
    object_name: str
    why: str
    """Of a quarantine."""
    begun_at: datetime
    """In UTC."""
    verified_at: datetime | None


async def read_archives(
    url: str, target: tuple[Kind, str] | None, namespace: str | None, limit: int
) -> list[ListedArchive]:
    """Newest first. `target`: of one name; `namespace` None: of all. Raises `LedgerUnavailable`."""
    kind, name = target or (None, None)
    parameters = {"kind": kind, "name": name, "namespace": namespace, "limit": limit}
    async with Database(url, READER) as database:
        rows = await database.rows("listing archives", _READ, parameters)
    return [msgspec.convert(in_utc(row), ListedArchive) for row in rows]
