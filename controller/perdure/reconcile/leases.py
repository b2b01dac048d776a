"""Leases of this process: taken per destructive or long operation, renewed while it goes on, checked before each effect.

An effect may run only while its lease has more than twice the step's deadline left: a paused process finds that out
before it acts, and the database refuses its rows if it does not.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from perdure.api.conditions import Reason
from perdure.api.names import Uid
from perdure.reconcile.guards import Guards
from perdure.reconcile.ports.errors import PortError, StaleFence
from perdure.reconcile.ports.ledger import AgentLedger, Lease
from perdure.reconcile.uptime import boottime

RENEWALS_PER_TTL = 3
RELEASE_SECONDS = 5.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    ttl_seconds: float = 60.0
    """How long after its death a holder still keeps others away."""
    effect_seconds: float = 10.0
    """Deadline of one destructive effect, and of one write under a lease."""


class LeaseKeeper:
    """One per agent process. Keys are uids. `clock`: the one that leases' deadlines are by; it counts sleep, too."""

    def __init__(
        self,
        ledger: AgentLedger,
        guards: Guards,
        clock: Callable[[], float] = boottime,
        times: LeaseTimes | None = None,
    ) -> None:
        self._ledger = ledger
        self._guards = guards
        self._clock = clock
        self._times = times or LeaseTimes()
        self._leases: dict[Uid, Lease] = {}
        self._kept: Counter[Uid] = Counter()
        """What work of unknown length goes on under."""
        self._renewing: asyncio.Task[None] | None = None
        self._releasing: set[asyncio.Task[None]] = set()

    async def hold(self, uid: Uid, deadline: float | None = None) -> Lease:
        """A lease that is good for a step of at most `deadline` seconds (default: one effect). Raises what the ledger
        raises; `StaleFence` if it was lost since it was taken: what was seen under it may not be so any more;
        `LedgerChanged` if the ledger is another one by now."""
        self._guards.trust_ledger()
        deadline = self._times.effect_seconds if deadline is None else deadline
        lease = self._leases.get(uid)
        if lease is not None and lease.expires_at - self._clock() > 2 * deadline:
            return lease
        ttl = max(self._times.ttl_seconds, 3 * deadline)
        if lease is None:
            return self._keep(uid, await self._take(uid, ttl))
        try:
            return self._keep(uid, await self._ledger.renew(lease, ttl))
        except StaleFence:
            self._leases.pop(uid, None)
            raise

    async def _take(self, uid: Uid, ttl: float) -> Lease:
        seen = self._guards.highest_fence
        lease = await self._ledger.acquire(uid, ttl)
        await self._guards.check_fence(lease.fence, seen)
        return lease

    def _keep(self, uid: Uid, lease: Lease) -> Lease:
        self._leases[uid] = lease
        return lease

    @asynccontextmanager
    async def effect(self, uid: Uid) -> AsyncIterator[Lease]:
        """Around one destructive effect: what is not done while the lease is good for sure is cut off, however long
        this process was paused meanwhile. Raises `PortError` then, and what `hold` raises."""
        lease = await self.hold(uid)
        good_until = lease.expires_at - self._times.effect_seconds
        try:
            async with asyncio.timeout(good_until - self._clock()) as limit:
                yield lease
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise self._late(lease, "and was cut off") from error
        if self._clock() > good_until:
            # The timeout stood still while the machine slept. What was done is seen by the next look.
            raise self._late(lease, "for the machine slept")

    def _late(self, lease: Lease, why: str) -> PortError:
        return PortError(
            f"working under the lease {lease.key}: it was not done {self._times.effect_seconds:g} s before the lease "
            f"runs out, {why}; it is looked at again",
            reason=Reason.IN_PROGRESS,
        )

    @asynccontextmanager
    async def kept(self, uid: Uid) -> AsyncIterator[Lease]:
        """Renewed in the background for work of unknown length; the work's own ledger writes check the fence."""
        lease = await self.hold(uid, self._times.ttl_seconds / RENEWALS_PER_TTL)
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
        """All that are kept in one statement, however many."""
        while True:
            await asyncio.sleep(self._times.ttl_seconds / RENEWALS_PER_TTL)
            leases = [self._leases[uid] for uid in self._kept if uid in self._leases]
            if not leases:
                continue
            try:
                renewed = await self._ledger.renew_all(leases, self._times.ttl_seconds)
            except PortError as error:
                # They may still be good; where one is not, the fence makes the work's own rows fail.
                log.warning("leases_not_renewed", leases=len(leases), error=str(error))
                continue
            for lease in renewed:
                if self._leases.get(Uid(lease.key)) in leases:
                    self._keep(Uid(lease.key), lease)
            if lost := {lease.key for lease in leases} - {lease.key for lease in renewed}:
                log.warning("leases_lost", uids=sorted(lost))

    def drop(self, uid: Uid) -> None:
        """Somebody has taken it over: the next step takes a new one, with a fence of its own."""
        self._leases.pop(uid, None)

    async def release(self, uid: Uid) -> None:
        """Give it back, also if the caller is cancelled meanwhile; a failure is no harm, it runs out by itself."""
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
