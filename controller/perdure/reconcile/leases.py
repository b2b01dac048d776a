"""Leases of this process: taken per destructive or long operation, renewed while it goes on, checked before each effect.

An effect may run only while its lease has more than twice the step's deadline left: a paused process finds that out
before it acts, and the database refuses its rows if it does not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog

from perdure.api.names import Uid
from perdure.reconcile.ports.errors import PortError, StaleFence
from perdure.reconcile.ports.ledger import AgentLedger, Lease

TTL_SECONDS = 60.0
RENEWALS_PER_TTL = 3

log = structlog.get_logger(__name__)


class LeaseKeeper:
    """One per agent process. Keys are uids."""

    def __init__(self, ledger: AgentLedger, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._monotonic = monotonic
        self._leases: dict[Uid, Lease] = {}

    async def hold(self, uid: Uid, deadline: float) -> Lease:
        """A lease that is good for a step of at most `deadline` seconds. Raises what the ledger raises."""
        lease = self._leases.get(uid)
        if lease is not None and lease.expires_at - self._monotonic() > 2 * deadline:
            return lease
        ttl = max(TTL_SECONDS, 3 * deadline)
        if lease is not None:
            try:
                return self._keep(uid, await self._ledger.renew(lease, ttl))
            except StaleFence:
                self._leases.pop(uid, None)
        return self._keep(uid, await self._ledger.acquire(uid, ttl))

    def _keep(self, uid: Uid, lease: Lease) -> Lease:
        self._leases[uid] = lease
        return lease

    @asynccontextmanager
    async def kept(self, uid: Uid) -> AsyncIterator[Lease]:
        """Renewed in the background for work of unknown length; the work's own ledger writes check the fence."""
        lease = await self.hold(uid, TTL_SECONDS / 3)
        renewing = asyncio.create_task(self._renew_on_and_on(uid), name=f"renew-lease-{uid}")
        try:
            yield lease
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    async def _renew_on_and_on(self, uid: Uid) -> None:
        while True:
            await asyncio.sleep(TTL_SECONDS / RENEWALS_PER_TTL)
            lease = self._leases.get(uid)
            if lease is None:
                return
            try:
                self._keep(uid, await self._ledger.renew(lease, TTL_SECONDS))
            except PortError as error:
                # The lease may still be good; if it is not, the fence makes the work's own rows fail.
                log.warning("lease_not_renewed", uid=uid, error=str(error))

    def drop(self, uid: Uid) -> None:
        """Somebody has taken it over: the next step takes a new one, with a fence of its own."""
        self._leases.pop(uid, None)

    async def release(self, uid: Uid) -> None:
        """Give it back; a failure is no harm, it runs out by itself."""
        lease = self._leases.pop(uid, None)
        if lease is None:
            return
        try:
            await self._ledger.release(lease)
        except PortError as error:
            log.info("lease_not_released", uid=uid, error=str(error))
