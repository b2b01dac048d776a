"""What an agent asks of each new connection before anything else is said on it: is this the ledger, and its schema ours?

Whatever stands behind the address may have been exchanged since the last connection: another database of the name, or an
older state of this one. The agent's composition root gives `Admission` to its `Database`.
"""

from __future__ import annotations

from psycopg import sql

from perdure.api.names import InstallationId
from perdure.ledger.database import Connection
from perdure.ledger.identity import identity_of
from perdure.ledger.leases import HIGHEST_FENCE
from perdure.ledger.migrate import check_applied
from perdure.reconcile.ports.errors import LedgerUnavailable
from perdure.reconcile.ports.ledger import LedgerJudge

_WHAT_IT_IS = sql.SQL(f"""
SELECT (SELECT jsonb_object_agg(version, sha256) FROM perdure_migrations) AS applied,
       (SELECT id FROM ledger_identity) AS id, {HIGHEST_FENCE} AS fence
""")


class Admission:
    """`judge` decides whether the ledger is the one of before; it is told of every connection's."""

    def __init__(self, installation: InstallationId, judge: LedgerJudge) -> None:
        self._installation = installation
        self._judge = judge

    async def __call__(self, connection: Connection) -> None:
        """One round trip. Raises `LedgerUnavailable` for another schema, and what the judge raises."""
        seen = self._judge.highest_fence
        row = await (await connection.execute(_WHAT_IT_IS, {"installation": self._installation})).fetchone()
        if row is None:
            raise LedgerUnavailable("reading which ledger it is: the server answered nothing")
        check_applied({int(version): sha256 for version, sha256 in (row["applied"] or {}).items()})
        await self._judge.admit(identity_of(row), seen)
