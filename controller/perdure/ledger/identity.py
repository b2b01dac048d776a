"""Which ledger this is and how far its fences have come: agents compare it with what they remember."""

from __future__ import annotations

from psycopg import sql

from perdure.api.names import InstallationId
from perdure.ledger.database import Database
from perdure.ledger.leases import HIGHEST_FENCE
from perdure.reconcile.ports.errors import LedgerUnavailable
from perdure.reconcile.ports.ledger import LedgerIdentity

_IDENTITY = sql.SQL(f"SELECT id, {HIGHEST_FENCE} AS fence FROM ledger_identity")


async def read_identity(database: Database, installation: InstallationId) -> LedgerIdentity:
    """Raises `LedgerUnavailable`, also where the one row is missing: such a ledger was tampered with."""
    doing = "reading the ledger's identity"
    row = await database.row(doing, _IDENTITY, {"installation": installation})
    if row is None:
        raise LedgerUnavailable(f"{doing}: the table ledger_identity is empty; restore the database from a backup")
    return LedgerIdentity(row["id"], row["fence"])
