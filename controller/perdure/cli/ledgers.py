"""Opens the ledger for a composition root: connected, of the right schema, scoped to the installation."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

from perdure.api.names import InstallationId, NodeId
from perdure.cli.process import Process, patiently
from perdure.ledger.agent import PostgresAgentLedger
from perdure.ledger.controller import PostgresControllerLedger
from perdure.ledger.database import Database
from perdure.ledger.migrate import migrate


@dataclass(frozen=True, slots=True)
class Ledgers:
    """The two views of one ledger."""

    agent: PostgresAgentLedger
    controller: PostgresControllerLedger


async def open_database(closing: AsyncExitStack, url: str) -> Database:
    """Opening never fails for a server that is away: the first question does."""
    return await closing.enter_async_context(Database(url))


async def migrate_patiently(process: Process, database: Database) -> None:
    """The controller's and standalone's duty; waits for a server that is away."""
    await patiently(process, "ledger", lambda: migrate(database))


def both(database: Database, installation: InstallationId, node: NodeId) -> Ledgers:
    """For standalone."""
    return Ledgers(PostgresAgentLedger(database, installation, node), PostgresControllerLedger(database, installation))
