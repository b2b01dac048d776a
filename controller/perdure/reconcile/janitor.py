"""Deletes from this node's store what purges of other nodes left for it. Called by the agent every few minutes."""

from __future__ import annotations

import asyncio
import random

import structlog

from perdure.api.names import NodeId
from perdure.reconcile.guards import Guards
from perdure.reconcile.ports.archives import Archives
from perdure.reconcile.ports.errors import LedgerUnavailable, PortError
from perdure.reconcile.ports.ledger import AgentLedger

log = structlog.get_logger(__name__)


class Janitor:
    """One per agent. A purge is a person's decision; it was committed in the ledger before this is asked. On a frozen node
    it waits: the ledger that says so may be another one."""

    def __init__(self, ledger: AgentLedger, archives: Archives, node: NodeId, guards: Guards) -> None:
        self._ledger = ledger
        self._archives = archives
        self._node = node
        self._guards = guards

    async def sweep(self) -> int:
        """Delete what is marked; how many. One that cannot be deleted stays, and the others go.

        Raises `PortError`, and deletes nothing, while the node is frozen; `LedgerUnavailable`, and deletes no more, when
        the ledger is away.
        """
        self._guards.permit_removal()
        marked = await self._ledger.purging(self._node)
        if marked:
            # No lease is taken for it, whose fence would tell of an older state under an open connection.
            seen = self._guards.highest_fence
            await self._guards.check_ledger(await self._ledger.identity(), seen)
        purged = 0
        for facts in marked:
            self._guards.permit_removal()
            try:
                await self._archives.delete(facts)
                await self._ledger.mark_purged(facts.sequence)
            except LedgerUnavailable:
                raise
            except PortError as error:
                log.warning("purged_archive_stays", archive=facts.sequence, uid=facts.uid, error=str(error))
                continue
            purged += 1
            log.info("archive_purged", archive=facts.sequence, uid=facts.uid)
        return purged

    async def run(self, interval: float) -> None:
        """Sweep every `interval` seconds, give or take a fifth, until cancelled."""
        while True:
            try:
                await self.sweep()
            except PortError as error:
                log.warning("purged_archives_stay", error=str(error))
            await asyncio.sleep(interval * random.uniform(0.8, 1.2))
