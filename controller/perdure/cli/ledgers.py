"""Opens the ledger for a composition root: connected, of the right schema, scoped to the installation."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass

import structlog

from perdure.api.names import InstallationId, NodeId
from perdure.cli.process import Process, patiently
from perdure.ledger.admission import Admission
from perdure.ledger.agent import PostgresAgentLedger
from perdure.ledger.database import Database
from perdure.ledger.migrate import migrate
from perdure.ledger.months import keep_months
from perdure.reconcile.ports.errors import LedgerUnavailable
from perdure.reconcile.ports.ledger import LedgerJudge

MONTHS_SECONDS = 24 * 3600.0
MONTHS_RETRY_SECONDS = 600.0
"""After a failure: months are made long before they are needed, and nothing depends on when old ones go."""

log = structlog.get_logger(__name__)


async def open_database(closing: AsyncExitStack, url: str) -> Database:
    """Opening never fails for a server that is away: the first question does."""
    return await closing.enter_async_context(Database(url))


@dataclass(frozen=True, slots=True)
class AgentAccess:
    """An agent's way to the ledger. Connections of its own also in standalone: each is judged before it is used."""

    url: str
    installation: InstallationId
    node: NodeId

    async def open(self, closing: AsyncExitStack, judge: LedgerJudge) -> PostgresAgentLedger:
        """Another schema than it knows, and another ledger than before, is refused as a server that is away would be."""
        database = Database(self.url, admit=Admission(self.installation, judge))
        return PostgresAgentLedger(await closing.enter_async_context(database), self.installation, self.node)


async def migrate_patiently(process: Process, database: Database) -> None:
    """The controller's and standalone's duty; waits for a server that is away."""
    await patiently(process, "ledger", lambda: migrate(database))


async def keep_months_daily(database: Database, kept_days: int) -> None:
    """The active controller's duty: at once, and each day. Never ends."""
    while True:
        seconds = MONTHS_SECONDS
        try:
            await keep_months(database, kept_days)
        except LedgerUnavailable as error:
            log.warning("months_not_kept", error=str(error), retry_in=MONTHS_RETRY_SECONDS)
            seconds = MONTHS_RETRY_SECONDS
        await asyncio.sleep(seconds)
