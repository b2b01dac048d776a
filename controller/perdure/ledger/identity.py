"""Which ledger this is and how far its fences have come: agents compare it with what they remember."""

from __future__ import annotations

from psycopg import sql
from psycopg.rows import DictRow

from perdure.api.names import InstallationId
from perdure.ledger.database import Database
from perdure.ledger.leases import HIGHEST_FENCE
from perdure.reconcile.ports.errors import LedgerUnavailable
from perdure.reconcile.ports.ledger import LedgerIdentity

_IDENTITY = sql.SQL(f"SELECT (SELECT id FROM ledger_identity) AS id, {HIGHEST_FENCE} AS fence")


async def read_identity(database: Database, installation: InstallationId) -> LedgerIdentity:
    """Raises `LedgerUnavailable`, also where the one row is missing: such a ledger was tampered with."""
    doing = "reading the ledger's identity"
    row = await database.row(doing, _IDENTITY, {"installation": installation})
    if row is None:
        raise LedgerUnavailable(f"{doing}: PostgreSQL answered nothing")
    return identity_of(row)


def identity_of(row: DictRow) -> LedgerIdentity:
    """Of a row with `id` and `fence`. Raises as `read_identity`."""
    if row["id"] is None:
        raise LedgerUnavailable(
            "reading the ledger's identity: the table ledger_identity is empty; restore the database from a backup"
        )
    return LedgerIdentity(row["id"], row["fence"])
