"""Archives and what is known of a life, as SQL, and how a row of the catalogue becomes `ArchiveFacts`.

States: writing -> verified -> quarantined, and from each of them, when a person wants it, -> purging -> purged. Only a
verified archive is ever restored. Used by both ledgers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from psycopg import sql

from perdure.api.archive import object_name
from perdure.api.names import InstallationId, RuntimeRef
from perdure.api.runtime import Restore, RestorePolicy
from perdure.ledger.leases import HELD
from perdure.ledger.operations import identity_parameters
from perdure.plan.world import ArchiveFacts

_OF_THE_IDENTITY = """
installation = %(installation)s AND namespace_uid = %(namespace_uid)s AND namespace = %(namespace)s
   AND kind = %(kind)s AND name = %(name)s
""".strip()
"""The index has no column for the namespace's name: its uid says as much, and the name of what it finds is compared."""

_OF_NO_LATER_LIFE = """
(archives.uid = %(uid)s
 OR EXISTS (SELECT FROM bindings AS theirs
              JOIN bindings AS this ON this.installation = theirs.installation AND this.uid = %(uid)s
             WHERE theirs.installation = archives.installation AND theirs.uid = archives.uid
               AND theirs.bound_at <= this.bound_at))
""".strip()
"""Of the life with the uid, or of one that is known to have been bound before it: a purge, which may have hung for days,
was never meant for the data of an object of the same name that was made later. A ledger that was put back may have lost
bindings of lives without an object for good: without both of them nobody knows which life was the later one."""

BEGIN = sql.SQL(f"""
WITH {HELD}
INSERT INTO archives (
    installation, sequence, operation, state, uid, namespace_uid, kind, namespace, name,
    node_id, snapshot_key, image, image_digest, chain_id
)
SELECT %(installation)s, nextval('archive_sequences'), %(operation)s, 'writing', %(uid)s, %(namespace_uid)s, %(kind)s,
       %(namespace)s, %(name)s, %(node_id)s, %(snapshot_key)s, %(image)s, %(image_digest)s, %(chain_id)s
  FROM held
ON CONFLICT (installation, operation) WHERE state IN ('writing', 'verified')
   DO UPDATE SET operation = excluded.operation
RETURNING sequence
""")

VERIFY = sql.SQL(f"""
WITH {HELD}, verified AS (
    UPDATE archives
       SET state = 'verified', verified_at = COALESCE(verified_at, now()), store = %(store)s, node_id = %(node_id)s,
           sha256 = %(sha256)s, bytes = %(bytes)s, entries = %(entries)s,
           uncompressed_bytes = %(uncompressed_bytes)s, empty = %(empty)s, object_name = %(object_name)s
      FROM held
     WHERE installation = %(installation)s AND sequence = %(sequence)s AND uid = %(uid)s
       AND snapshot_key = %(snapshot_key)s
       AND (state = 'writing' OR state = 'verified' AND sha256 = %(sha256)s)
    RETURNING sequence
)
SELECT EXISTS (SELECT FROM held) AS held, EXISTS (SELECT FROM verified) AS done,
       (SELECT state FROM archives WHERE installation = %(installation)s AND sequence = %(sequence)s) AS state
""")

ANNOUNCE_REMOVAL = sql.SQL(f"""
WITH {HELD}, announced AS (
    UPDATE archives SET removing_at = COALESCE(removing_at, now())
      FROM held
     WHERE installation = %(installation)s AND sequence = %(sequence)s AND state = 'verified'
    RETURNING sequence
)
SELECT EXISTS (SELECT FROM held) AS held, EXISTS (SELECT FROM announced) AS done,
       (SELECT state FROM archives WHERE installation = %(installation)s AND sequence = %(sequence)s) AS state
""")

TAKE_REMOVAL_BACK = sql.SQL(f"""
WITH {HELD}, kept AS (
    UPDATE archives SET removing_at = NULL
      FROM held
     WHERE {_OF_THE_IDENTITY}
       AND uid = %(uid)s AND snapshot_key = %(snapshot_key)s AND removing_at IS NOT NULL AND put_away_at IS NULL
)
SELECT EXISTS (SELECT FROM held) AS held
""")

PUT_AWAY = sql.SQL(f"""
WITH {HELD}, put_away AS (
    UPDATE archives SET put_away_at = COALESCE(put_away_at, now())
      FROM held
     WHERE installation = %(installation)s AND sequence = %(sequence)s AND state = 'verified'
    RETURNING sequence
)
SELECT EXISTS (SELECT FROM held) AS held, EXISTS (SELECT FROM put_away) AS done,
       (SELECT state FROM archives WHERE installation = %(installation)s AND sequence = %(sequence)s) AS state
""")

MARK_PURGING = sql.SQL(f"""
WITH {HELD}, purging AS (
    UPDATE archives SET state = 'purging', purging_at = COALESCE(purging_at, now())
      FROM held
     WHERE installation = %(installation)s AND sequence = %(sequence)s AND state <> 'purged' AND NOT retain
       AND {_OF_NO_LATER_LIFE}
    RETURNING sequence
)
SELECT EXISTS (SELECT FROM held) AS held, EXISTS (SELECT FROM purging) AS done,
       (SELECT CASE WHEN retain THEN 'retained' WHEN NOT {_OF_NO_LATER_LIFE} THEN 'perhaps of a later life' ELSE state END
          FROM archives WHERE installation = %(installation)s AND sequence = %(sequence)s) AS state
""")

MARK_PURGED = sql.SQL("""
UPDATE archives SET state = 'purged', purged_at = COALESCE(purged_at, now())
 WHERE installation = %(installation)s AND sequence = %(sequence)s AND state IN ('purging', 'purged')
RETURNING sequence
""")

PURGEABLE = sql.SQL(f"""
SELECT * FROM archives
 WHERE {_OF_THE_IDENTITY}
   AND state <> 'purged' AND NOT retain AND {_OF_NO_LATER_LIFE}
 ORDER BY sequence
""")

SPARED = sql.SQL(f"""
SELECT sequence FROM archives
 WHERE {_OF_THE_IDENTITY}
   AND state <> 'purged' AND (retain OR NOT {_OF_NO_LATER_LIFE})
""")

PURGING = sql.SQL("""
SELECT * FROM archives
 WHERE installation = %(installation)s AND state = 'purging' AND (node_id IS NULL OR node_id = %(node_id)s)
 ORDER BY sequence
""")

QUARANTINE = sql.SQL("""
UPDATE archives SET state = 'quarantined', quarantined_at = now(), why = %(why)s
 WHERE installation = %(installation)s AND sequence = %(sequence)s AND state IN ('writing', 'verified')
""")

FARTHEST = 1_000_000
"""How far beyond the newest sequence that is known one may be that was given out in a time that is lost."""

CATALOGUED = sql.SQL(f"""
SELECT CASE
           WHEN known.sequence IS NULL AND %(sequence)s > last_value + {FARTHEST} THEN 'too_far'
           WHEN known.sequence IS NULL THEN 'nothing'
           WHEN known.state = 'quarantined' THEN 'quarantined'
           WHEN known.state IN ('purging', 'purged') THEN 'purged'
           WHEN (known.uid, known.snapshot_key) <> (%(uid)s, %(snapshot_key)s) THEN 'other'
           WHEN known.state = 'writing' THEN 'unfinished'
           WHEN known.sha256 = %(sha256)s THEN 'same'
           ELSE 'other'
       END AS it
  FROM archive_sequences
  LEFT JOIN archives AS known ON known.installation = %(installation)s AND known.sequence = %(sequence)s
""")

ENTER = sql.SQL(f"""
WITH {HELD}, entered AS (
    INSERT INTO archives AS known (
        installation, sequence, operation, state, uid, namespace_uid, kind, namespace, name, store, node_id,
        snapshot_key, image, image_digest, chain_id, sha256, bytes, entries, uncompressed_bytes, empty, object_name,
        verified_at, put_away_at
    )
    SELECT %(installation)s, %(sequence)s, %(operation)s, 'verified', %(uid)s, %(namespace_uid)s, %(kind)s, %(namespace)s,
           %(name)s, %(store)s, %(node_id)s, %(snapshot_key)s, %(image)s, %(image_digest)s, %(chain_id)s, %(sha256)s,
           %(bytes)s, %(entries)s, %(uncompressed_bytes)s, %(empty)s, %(object_name)s, now(),
           CASE WHEN %(all_there_is)s THEN now() END
      FROM held
    ON CONFLICT (installation, sequence) DO UPDATE
       SET state = 'verified', verified_at = now(), store = excluded.store, node_id = excluded.node_id,
           sha256 = excluded.sha256, bytes = excluded.bytes, entries = excluded.entries,
           uncompressed_bytes = excluded.uncompressed_bytes, empty = excluded.empty, object_name = excluded.object_name,
           put_away_at = excluded.put_away_at
     WHERE known.state = 'writing' AND (known.uid, known.snapshot_key) = (excluded.uid, excluded.snapshot_key)
    RETURNING sequence
), newest AS (
    -- What that life last had, as far as anybody knows: a snapshot's key ends in its number.
    UPDATE runtimes SET snapshot_key = %(snapshot_key)s, version = version + 1, updated_at = now()
      FROM entered
     WHERE runtimes.installation = %(installation)s AND runtimes.uid = %(uid)s AND runtimes.released_at IS NULL
       AND runtimes.snapshot_key IS NOT NULL AND %(all_there_is)s
       AND substring(runtimes.snapshot_key FROM '[0-9]+$')::bigint < substring(%(snapshot_key)s FROM '[0-9]+$')::bigint
), told AS (
    INSERT INTO operations (
        installation, id, uid, namespace_uid, kind, namespace, name, node_name, op, source, fence, outcome, message,
        image, correlation, started_at, finished_at, month
    )
    SELECT %(installation)s, %(operation)s, %(uid)s, %(namespace_uid)s, %(kind)s, %(namespace)s, %(name)s, %(node_name)s,
           'adopt', 'admin_cli', held.fence, 'success', %(message)s, %(image)s, %(request)s, now(), now(),
           operation_month(%(installation)s, %(operation)s, extract(epoch FROM now())::double precision)
      FROM held, entered
    ON CONFLICT (installation, id, month) DO NOTHING
)
SELECT EXISTS (SELECT FROM held) AS held, EXISTS (SELECT FROM entered) AS done
""")

# Sequences only ever rise, whoever draws at the same time.
USE_UP = sql.SQL("""
SELECT max(drawn) FROM (
    SELECT nextval('archive_sequences') AS drawn
      FROM archive_sequences AS so_far,
           generate_series(1, %(sequence)s - CASE WHEN so_far.is_called THEN so_far.last_value ELSE 0 END)
) AS used_up
""")

LATEST = """
(SELECT to_jsonb(latest) FROM archives AS latest
  WHERE latest.installation = %(installation)s AND latest.namespace_uid = %(namespace_uid)s
    AND latest.namespace = %(namespace)s AND latest.kind = %(kind)s AND latest.name = %(name)s
    AND latest.state = 'verified' AND NOT latest.empty
  ORDER BY latest.sequence DESC LIMIT 1)
"""
NAMED = """
(SELECT to_jsonb(named) FROM archives AS named
  WHERE %(archive)s::text IS NOT NULL AND named.installation = %(installation)s
    AND named.namespace_uid = %(namespace_uid)s AND named.namespace = %(namespace)s
    AND named.object_name = %(archive)s AND named.object_name <> ''
    AND named.state = 'verified'
  ORDER BY named.sequence DESC LIMIT 1)
"""

KEPT = """
(SELECT to_jsonb(kept) FROM archives AS kept
  WHERE kept.installation = %(installation)s AND kept.namespace_uid = %(namespace_uid)s
    AND kept.namespace = %(namespace)s AND kept.kind = %(kind)s AND kept.name = %(name)s
    AND kept.uid = %(uid)s AND kept.state = 'verified'
    AND COALESCE(kept.put_away_at, kept.removing_at) IS NOT NULL AND kept.snapshot_key = this.snapshot_key
  ORDER BY kept.sequence DESC LIMIT 1)
"""
"""What was put away, unless data is known that came after it: no snapshot's key is used twice."""

FACTS = sql.SQL(f"""
SELECT binding.node_id AS bound_to, this.namespace_uid AS bound_in, this.snapshot_key,
       this.released_at IS NOT NULL AS released,
       this.force_released_at IS NOT NULL AS force_released, {LATEST} AS latest, {NAMED} AS named,
       {KEPT} AS put_away,
       (SELECT max(bad.sequence) FROM archives AS bad
         WHERE bad.installation = %(installation)s AND bad.namespace_uid = %(namespace_uid)s
           AND bad.namespace = %(namespace)s AND bad.kind = %(kind)s AND bad.name = %(name)s
           AND bad.state = 'quarantined') AS quarantined,
       ARRAY(SELECT other.uid FROM runtimes AS other
              WHERE other.installation = %(installation)s AND other.namespace_uid = %(namespace_uid)s
                AND other.namespace = %(namespace)s AND other.kind = %(kind)s AND other.name = %(name)s
                AND other.uid <> %(uid)s
                AND other.snapshot_key IS NOT NULL AND other.released_at IS NULL
                AND NOT EXISTS (SELECT FROM archives AS held
                                 WHERE held.installation = other.installation AND held.uid = other.uid
                                   AND held.namespace_uid = other.namespace_uid
                                   AND held.namespace = other.namespace AND held.kind = other.kind
                                   AND held.name = other.name AND held.state = 'verified'
                                   AND COALESCE(held.put_away_at, held.removing_at) IS NOT NULL
                                   AND held.snapshot_key = other.snapshot_key)
              ORDER BY other.created_at, other.uid) AS unarchived,
       ARRAY(SELECT other.uid FROM runtimes AS other
              WHERE other.installation = %(installation)s AND other.namespace_uid = %(namespace_uid)s
                AND other.kind = %(kind)s AND other.name = %(name)s AND other.uid <> %(uid)s
                AND other.force_released_at IS NOT NULL AND other.released_at IS NULL
              ORDER BY other.created_at, other.uid) AS given_up,
       ARRAY(SELECT forgotten.id FROM operations AS forgotten
              WHERE forgotten.installation = %(installation)s AND forgotten.uid = %(uid)s
                AND forgotten.finished_at IS NULL AND forgotten.started_at IS NOT NULL
              ORDER BY forgotten.started_at, forgotten.id) AS unfinished,
       ARRAY(SELECT sequence FROM archives
              WHERE {_OF_THE_IDENTITY}
                AND state <> 'purged' AND NOT retain AND {_OF_NO_LATER_LIFE}
              ORDER BY sequence) AS purgeable,
       ARRAY(SELECT sequence FROM archives
              WHERE {_OF_THE_IDENTITY}
                AND state <> 'purged' AND (retain OR NOT {_OF_NO_LATER_LIFE})
              ORDER BY sequence) AS spared
  FROM (VALUES (1)) AS always
  LEFT JOIN runtimes AS this ON this.installation = %(installation)s AND this.uid = %(uid)s
  LEFT JOIN bindings AS binding ON binding.installation = %(installation)s AND binding.uid = %(uid)s
""")

BOUND = sql.SQL(f"""
SELECT binding.node_name, binding.node_id, this.namespace_uid, this.released_at IS NOT NULL AS released,
       {LATEST} AS latest, {NAMED} AS named
  FROM (VALUES (1)) AS always
  LEFT JOIN runtimes AS this ON this.installation = %(installation)s AND this.uid = %(uid)s
  LEFT JOIN bindings AS binding ON binding.installation = %(installation)s AND binding.uid = %(uid)s
""")

UNPUBLISHED = sql.SQL("""
SELECT * FROM archives
 WHERE installation = %(installation)s AND state = 'verified' AND published_at IS NULL AND sequence > %(after)s
   AND (%(uid)s::text IS NULL OR uid = %(uid)s)
 ORDER BY sequence LIMIT %(limit)s
""")

PUBLISHED = sql.SQL("""
UPDATE archives
   SET object_name = COALESCE(NULLIF(%(object_name)s, ''), object_name),
       published_at = COALESCE(published_at, now())
 WHERE installation = %(installation)s AND sequence = %(sequence)s
""")

PURGED = sql.SQL("""
SELECT * FROM archives
 WHERE installation = %(installation)s AND state = 'purged' AND unpublished_at IS NULL AND sequence > %(after)s
   AND (%(uid)s::text IS NULL OR (kind, namespace, name) = (%(kind)s, %(namespace)s, %(name)s))
 ORDER BY sequence LIMIT %(limit)s
""")

UNPUBLISHED_NOW = sql.SQL("""
UPDATE archives SET unpublished_at = COALESCE(unpublished_at, now())
 WHERE installation = %(installation)s AND sequence = %(sequence)s AND state = 'purged'
""")

RETAIN = sql.SQL("""
UPDATE archives SET retain = %(retain)s
 WHERE installation = %(installation)s AND namespace_uid = %(namespace_uid)s AND object_name = %(object_name)s
   AND retain <> %(retain)s
""")


def archive_facts(row: Mapping[str, Any]) -> ArchiveFacts:
    """A row of `archives` (or its JSON), typed. Columns that are not facts are left out."""
    return msgspec.convert(row, ArchiveFacts)


def entry_parameters(installation: InstallationId, found: ArchiveFacts, ref: RuntimeRef) -> dict[str, object]:
    """All of an archive that its manifest tells."""
    return {
        **identity_parameters(installation, ref),
        "sequence": found.sequence,
        "store": found.store,
        "node_id": found.node_id,
        "snapshot_key": found.snapshot_key,
        "image": found.image,
        "image_digest": found.image_digest,
        "chain_id": found.chain_id,
        "sha256": found.sha256,
        "bytes": found.bytes,
        "entries": found.entries,
        "uncompressed_bytes": found.uncompressed_bytes,
        "empty": found.empty,
        "object_name": object_name(ref.kind, ref.name, found.sequence),
    }


def page_parameters(installation: InstallationId, limit: int, after: int, of: RuntimeRef | None) -> dict[str, object]:
    """Of `UNPUBLISHED` and `PURGED`."""
    return {
        "installation": installation,
        "limit": limit,
        "after": after,
        "uid": of.uid if of is not None else None,
        "kind": of.kind if of is not None else None,
        "namespace": of.namespace if of is not None else None,
        "name": of.name if of is not None else None,
    }


def restore_parameters(restore: Restore) -> dict[str, object]:
    return {"archive": restore.archive if restore.policy is RestorePolicy.ARCHIVE else None}
