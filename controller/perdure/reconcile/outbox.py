"""Carries operation rows from the node journal to the ledger: in order, exactly once by their ids, whenever it is there."""

from __future__ import annotations

import asyncio

import structlog

from perdure.api.names import NodeName
from perdure.reconcile.ports.errors import PortError
from perdure.reconcile.ports.journal import Journal
from perdure.reconcile.ports.ledger import AgentLedger

BATCH = 200
LINGER_SECONDS = 0.05
"""A row waits this long for others to go with: one transaction for a burst of starts costs a fraction of one for each."""
RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0)

log = structlog.get_logger(__name__)


class Outbox:
    """`run` is one task of the agent; `poke` is called after every commit that added rows."""

    def __init__(self, journal: Journal, ledger: AgentLedger, node: NodeName) -> None:
        self._journal = journal
        self._ledger = ledger
        self._node = node
        self._poked = asyncio.Event()
        self._sending = asyncio.Lock()

    def poke(self) -> None:
        self._poked.set()

    async def flush(self) -> None:
        """Send all that is waiting now. Raises `LedgerUnavailable`: the rows stay in the journal."""
        async with self._sending:
            while rows := self._journal.unsent()[:BATCH]:
                await self._ledger.apply(rows, self._node)
                await self._journal.sent(len(rows))

    async def run(self) -> None:
        """Flush whenever poked, and again with growing delays while the ledger is away."""
        failures = 0
        while True:
            self._poked.clear()
            try:
                await self.flush()
                failures = 0
                await self._poked.wait()
                await asyncio.sleep(LINGER_SECONDS)
            except PortError as error:
                delay = RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
                failures += 1
                log.warning("ledger_rows_wait", rows=len(self._journal.unsent()), retry_in=delay, error=str(error))
                await asyncio.sleep(delay)
