"""The Lease (coordination.k8s.io/v1) of the one controller that leads, and what all Leases share.

Expiry is judged by watching: a Lease has expired when its holder was not seen to renew it for its whole duration *on
our own clock*. Times written by other machines are never compared with ours (client-go tools/leaderelection does the
same). Every write carries the resourceVersion that it was decided on, so of two that want one Lease one gets 409.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import structlog

from perdure.api.names import GROUP, LEASE_NAMESPACE
from perdure.kube import clock, paths
from perdure.kube.client import ApiClient, ApiRefused, Json
from perdure.reconcile.ports.errors import ApiUnavailable

LEADER_LEASE = "perdure-controller"
ROLE_LABEL = f"{GROUP}/lease"

log = structlog.get_logger(__name__)


class LeadershipLost(Exception):
    """Another controller leads, or ours could not be renewed in time: this process must end at once."""


@dataclass(frozen=True, slots=True)
class LeaderTiming:
    """Seconds, as Kubernetes' own controllers have them. `duration` > `deadline` > `retry`, or two could lead.

    An infinite `deadline`: an API server that is away never ends leadership, another holder always does.
    """

    duration: float = 15.0
    deadline: float = 10.0
    retry: float = 2.0


class LeaseWatch:
    """How long a Lease has not been seen to change, on our clock."""

    def __init__(self, now: float) -> None:
        self._token = ""
        self._changed_at = now

    def see(self, token: str, now: float) -> None:
        """`token` is anything that each renewal changes."""
        if token != self._token:
            self._token, self._changed_at = token, now

    def forgive(self, now: float) -> None:
        """Begin to count anew."""
        self._changed_at = now

    def age(self, now: float) -> float:
        return now - self._changed_at


class LeaderLease:
    """Leadership of controllers. `holder` must be unique to this process (host name and something random)."""

    def __init__(
        self,
        client: ApiClient,
        holder: str,
        *,
        clock_seconds: Callable[[], float] = time.monotonic,
        timing: LeaderTiming = LeaderTiming(),
        name: str = LEADER_LEASE,
    ) -> None:
        self._client = client
        self._holder = holder
        self._now = clock_seconds
        self._timing = timing
        self._name = name
        self._held: Json | None = None
        self._renewed_at = 0.0

    async def acquire(self, above: int = 0) -> int:
        """Wait until we lead; returns the epoch, which is higher than any before it and than `above`.

        `above` is the highest epoch that the ledger remembers: it keeps epochs rising if the Lease was deleted.
        """
        watch = LeaseWatch(self._now())
        waiting_for = ""
        while True:
            try:
                lease = await self._read()
                if lease is None:
                    self._held = await self._create(above + 1)
                elif self._may_take(lease, watch):
                    self._held = await self._write(lease, max(_transitions(lease), above) + 1)
                elif holder_of(lease) != waiting_for:
                    waiting_for = holder_of(lease)
                    log.info("waiting_to_lead", lease=self._name, holder=waiting_for)
            except ApiRefused as refused:
                if refused.code != 409:
                    raise ApiUnavailable(
                        f"{refused}; see deploy/rbac/ for the rights that a controller needs"
                    ) from refused
            except ApiUnavailable as error:
                watch.forgive(self._now())
                log.warning("leader_lease_not_reachable", lease=self._name, error=str(error))
            if self._held is not None:
                epoch = _transitions(self._held)
                log.info("leading", lease=self._name, holder=self._holder, epoch=epoch)
                return epoch
            await asyncio.sleep(self._timing.retry * random.uniform(0.8, 1.2))

    async def hold(self) -> NoReturn:
        """Renew until that fails for `deadline` seconds, or somebody else has it; then raise `LeadershipLost`."""
        while True:
            await asyncio.sleep(self._timing.retry)
            left = self._renewed_at + self._timing.deadline - self._now()
            if left <= 0:
                raise LeadershipLost(f"lease {self._name} could not be renewed for {self._timing.deadline:.0f} s")
            try:
                async with asyncio.timeout(min(left, self._timing.duration)):
                    await self._renew()
            except (ApiUnavailable, TimeoutError) as error:
                log.warning("leader_lease_not_renewed", lease=self._name, error=str(error))

    async def release(self) -> None:
        """Let the next one lead at once. Best effort: if it fails, the Lease expires."""
        held, self._held = self._held, None
        if held is None:
            return
        body = {**held, "spec": {**held["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}}
        try:
            await self._client.put(paths.lease(self._name), f"releasing lease {self._name}", body)
        except (ApiRefused, ApiUnavailable) as error:
            log.info("leader_lease_not_released", lease=self._name, error=str(error))

    def _may_take(self, lease: Json, watch: LeaseWatch) -> bool:
        watch.see(lease["metadata"]["resourceVersion"], self._now())
        duration = max(self._timing.duration, float(lease["spec"].get("leaseDurationSeconds") or 0))
        return holder_of(lease) in ("", self._holder) or watch.age(self._now()) > duration

    async def _renew(self) -> None:
        held = self._held
        if held is None:
            raise LeadershipLost(f"lease {self._name} is not held")
        try:
            self._held = await self._write(held, _transitions(held))
        except ApiRefused as refused:
            if refused.code not in (404, 409):
                raise ApiUnavailable(str(refused)) from refused
            # A request of ours whose answer was lost also leads here: only the holder's name tells.
            newest = await self._read()
            if newest is None or holder_of(newest) != self._holder or _transitions(newest) != _transitions(held):
                raise LeadershipLost(f"lease {self._name} was taken by {newest and holder_of(newest)}") from refused
            self._held = newest

    async def _read(self) -> Json | None:
        try:
            return await self._client.get(paths.lease(self._name), f"reading lease {self._name}")
        except ApiRefused as refused:
            if refused.code == 404 and refused.about == self._name:
                return None
            raise

    async def _create(self, epoch: int) -> Json:
        body = lease_body(self._name, "controller")
        body["spec"] = self._spec(epoch)
        return await self._dated(self._client.post(paths.leases(), f"creating lease {self._name}", body))

    async def _write(self, lease: Json, epoch: int) -> Json:
        body = {**lease, "spec": {**lease["spec"], **self._spec(epoch)}}
        if _transitions(lease) == epoch:
            body["spec"]["acquireTime"] = lease["spec"].get("acquireTime")
        return await self._dated(self._client.put(paths.lease(self._name), f"writing lease {self._name}", body))

    async def _dated(self, request: Any) -> Json:
        # From before the request is sent: what we believe about our time must never be later than what others see.
        sent_at = self._now()
        answer: Json = await request
        self._renewed_at = sent_at
        return answer

    def _spec(self, epoch: int) -> Json:
        now = clock.now_micro()
        return {
            "holderIdentity": self._holder,
            "leaseDurationSeconds": max(1, int(self._timing.duration)),
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": epoch,
        }


def lease_body(name: str, role: str) -> Json:
    """A Lease of ours without its spec."""
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": LEASE_NAMESPACE, "labels": {ROLE_LABEL: role}},
    }


def holder_of(lease: Json) -> str:
    """Who has it; empty: nobody."""
    return str(lease["spec"].get("holderIdentity") or "")


def _transitions(lease: Json) -> int:
    return int(lease["spec"].get("leaseTransitions") or 0)
