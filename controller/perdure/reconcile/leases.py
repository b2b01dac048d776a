"""Leases of this process: taken per destructive or long operation, renewed while it goes on, checked before each effect.

An effect may run only while its lease has more than twice the step's deadline left: a paused process finds that out
before it acts, and the database refuses its rows if it does not.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog

from perdure.api.names import Uid
from perdure.reconcile.ports.errors import PortError, StaleFence
from perdure.reconcile.ports.ledger import AgentLedger, Lease

TTL_SECONDS = 60.0
RENEWALS_PER_TTL = 3
RELEASE_SECONDS = 5.0

log = structlog.get_logger(__name__)


class LeaseKeeper:
    """One per agent process. Keys are uids."""

    def __init__(self, ledger: AgentLedger, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._monotonic = monotonic
        self._leases: dict[Uid, Lease] = {}
        self._kept: Counter[Uid] = Counter()
        """What work of unknown length goes on under."""
        self._renewing: asyncio.Task[None] | None = None
        self._releasing: set[asyncio.Task[None]] = set()

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
        """Renewed in the background for work of unknown length; the work's own ledger writes check the fence.

        Whatever goes on at once is renewed together, in one statement for each interval."""
        lease = await self.hold(uid, TTL_SECONDS / 3)
        self._kept[uid] += 1
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew_on_and_on(), name="renew-leases")
        try:
            yield lease
        finally:
            self._kept -= Counter({uid: 1})
            if not self._kept:
                renewing, self._renewing = self._renewing, None
                renewing.cancel()
                await asyncio.gather(renewing, return_exceptions=True)

    async def _renew_on_and_on(self) -> None:
        while True:
            await asyncio.sleep(TTL_SECONDS / RENEWALS_PER_TTL)
            held = [self._leases[uid] for uid in self._kept if uid in self._leases]
            if not held:
                continue
            try:
                renewed = {lease.key: lease for lease in await self._ledger.renew_all(held, TTL_SECONDS)}
            except PortError as error:
                # They may still be good; if one is not, the fence makes its work's own rows fail.
                log.warning("leases_not_renewed", count=len(held), error=str(error))
                continue
            for lease in held:
                uid = Uid(lease.key)
                if lease.key in renewed and self._leases.get(uid) == lease:
                    self._leases[uid] = renewed[lease.key]
                elif lease.key not in renewed:
                    log.warning("lease_was_taken_over", uid=uid, fence=lease.fence)

    def drop(self, uid: Uid) -> None:
        """Somebody has taken it over: the next step takes a new one, with a fence of its own."""
        self._leases.pop(uid, None)

    async def release(self, uid: Uid) -> None:
        """Give it back; a failure is no harm, it runs out by itself."""
        lease = self._leases.pop(uid, None)
        if lease is None:
            return
        # It goes on by itself if the caller is cancelled: nobody else should have to wait for the lease to run out.
        releasing = asyncio.create_task(self._release(uid, lease), name=f"release-lease-{uid}")
        self._releasing.add(releasing)
        releasing.add_done_callback(self._releasing.discard)
        await asyncio.shield(releasing)

    async def _release(self, uid: Uid, lease: Lease) -> None:
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                await self._ledger.release(lease)
        except PortError as error:
            log.info("lease_not_released", uid=uid, error=str(error))
        except TimeoutError:
            log.info("lease_not_released", uid=uid, error=f"no answer within {RELEASE_SECONDS:g} s")
