"""Leases and the fence check, as SQL. Used by the agent's ledger for every statement that carries a lease.

Time is PostgreSQL's alone. `HELD` locks the lease's row for the length of the statement, so a takeover is entirely
before the write (which then finds nothing and writes nothing) or entirely after it.
"""

from __future__ import annotations

from psycopg import sql

from perdure.reconcile.ports.errors import StaleFence
from perdure.reconcile.ports.ledger import Lease

# The fence of the update is drawn after the row is locked: the later taker always has the higher one.
ACQUIRE = sql.SQL("""
INSERT INTO leases AS held (installation, key, holder, token, fence, expires_at)
VALUES (%(installation)s, %(key)s, %(holder)s, %(token)s, nextval('fences'), now() + make_interval(secs => %(ttl)s))
ON CONFLICT (installation, key) DO UPDATE
   SET holder = excluded.holder, token = excluded.token, fence = nextval('fences'),
       expires_at = clock_timestamp() + make_interval(secs => %(ttl)s)
 WHERE held.holder = excluded.holder OR held.token = '' OR held.expires_at <= now()
RETURNING fence
""")

RENEW = sql.SQL("""
UPDATE leases SET expires_at = now() + make_interval(secs => %(ttl)s)
 WHERE installation = %(installation)s AND key = %(lease_key)s AND token = %(lease_token)s AND fence = %(lease_fence)s
RETURNING fence
""")

RENEW_ALL = sql.SQL("""
UPDATE leases SET expires_at = now() + make_interval(secs => %(ttl)s)
  FROM unnest(%(keys)s::text[], %(tokens)s::text[], %(fences)s::bigint[]) AS mine (key, token, fence)
 WHERE leases.installation = %(installation)s AND leases.key = mine.key AND leases.token = mine.token
   AND leases.fence = mine.fence
RETURNING leases.key
""")

RELEASE = sql.SQL("""
UPDATE leases SET token = '', expires_at = now()
 WHERE installation = %(installation)s AND key = %(lease_key)s AND token = %(lease_token)s AND fence = %(lease_fence)s
""")

HELD = """
held AS (
    SELECT fence FROM leases
     WHERE installation = %(installation)s AND key = %(lease_key)s AND token = %(lease_token)s
       AND fence = %(lease_fence)s AND expires_at > now()
       FOR SHARE
)
"""
"""A common table expression with one row if the statement's lease is still held, and none otherwise."""

HIGHEST_FENCE = "(SELECT COALESCE(max(fence), 0) FROM leases WHERE installation = %(installation)s)"


def parameters(lease: Lease) -> dict[str, object]:
    return {"lease_key": lease.key, "lease_token": lease.token, "lease_fence": lease.fence}


def stale(doing: str, lease: Lease) -> StaleFence:
    return StaleFence(
        f"{doing}: the lease {lease.key} (fence {lease.fence}) was taken over or has run out; nothing was written"
    )
