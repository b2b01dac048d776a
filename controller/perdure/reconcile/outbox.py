"""Carries operation rows from the node journal to the ledger: in order, exactly once by their ids, whenever it is there.

A row that the ledger refuses as it is (nothing in Perdure should make one) is set aside in the journal, and the rest goes
on, that of the same runtime included: rows are put in order by what they say (`numbered_from`, `n`, the generation of the
snapshot), not by when they come, and a start and an end make the same row whichever is first. To have the later ones wait
would hold up one runtime's history for ever, and fill the journal, for nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from perdure.api.names import NodeName
from perdure.reconcile.ports.errors import PortError, RowRefused
from perdure.reconcile.ports.journal import Journal, LedgerRow
from perdure.reconcile.ports.ledger import AgentLedger

BATCH = 200
LINGER_SECONDS = 0.05
"""A row waits this long for others to go with: one transaction for a burst of starts costs a fraction of one for each."""
RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0)
REFUSED_SECONDS = 3600.0
"""How often a row that was refused is tried again: another version of the server, or a person, may have helped."""

log = structlog.get_logger(__name__)


class Outbox:
    """`run` is one task of the agent; `poke` is called after every commit that added rows."""

    def __init__(self, journal: Journal, ledger: AgentLedger, node: NodeName) -> None:
        self._journal = journal
        self._ledger = ledger
        self._node = node
        self._poked = asyncio.Event()
        self._sending = asyncio.Lock()
        """Held from reading what comes first in the journal until that is confirmed or set aside: the journal counts from
        the front."""
        self._told: set[str] = set()
        """Refused rows that the log has already."""

    def poke(self) -> None:
        self._poked.set()

    async def flush(self) -> None:
        """Send all that is waiting now. Raises `LedgerUnavailable`: the rows stay in the journal."""
        async with self._sending:
            while rows := self._journal.unsent()[:BATCH]:
                try:
                    await self._ledger.apply(rows, self._node)
                except RowRefused:
                    await self._send_singly(rows)
                else:
                    await self._journal.sent(len(rows))

    async def _send_singly(self, rows: Sequence[LedgerRow]) -> None:
        """One of them was refused: that one is found, and the others are written."""
        for row in rows:
            try:
                await self._ledger.apply((row,), self._node)
            except RowRefused as error:
                await self._journal.set_aside()
                if row.id not in self._told:
                    self._told.add(row.id)
                    log.error("ledger_row_refused", runtime=str(row.ref), uid=row.ref.uid, op=row.id, error=str(error))
            else:
                await self._journal.sent(1)

    async def run(self) -> None:
        """Flush whenever poked, and again with growing delays while the ledger is away. What was refused is tried again
        at the start and hourly."""
        failures, again_at = 0, asyncio.get_running_loop().time()
        while True:
            self._poked.clear()
            try:
                if asyncio.get_running_loop().time() >= again_at:
                    async with self._sending:
                        await self._journal.take_back()
                    again_at = asyncio.get_running_loop().time() + REFUSED_SECONDS
                await self.flush()
                failures = 0
                await self._wait_until(again_at)
                await asyncio.sleep(LINGER_SECONDS)
            except PortError as error:
                delay = RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
                failures += 1
                log.warning("ledger_rows_wait", rows=len(self._journal.unsent()), retry_in=delay, error=str(error))
                await asyncio.sleep(delay)

    async def _wait_until(self, again_at: float) -> None:
        """For a poke, or for the time to try what was refused, if anything was."""
        try:
            async with asyncio.timeout_at(again_at if self._journal.refused() else None):
                await self._poked.wait()
        except TimeoutError:
            return
