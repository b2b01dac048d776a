"""The Lease by which an agent says that it and its node are alive; the controller's `NodeCache` reads it.

Called by the agent's composition root: `claim` once at the start, then `run` beside everything else. `read_pulses` is for
whoever looks once and cannot watch.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import structlog

from perdure.api.names import NodeId, NodeName
from perdure.kube import clock, paths
from perdure.kube.client import ApiClient, ApiRefused, Json
from perdure.kube.lease import ROLE_LABEL, holder_of, lease_body
from perdure.reconcile.ports.errors import ApiUnavailable

NODE_LEASE_SECONDS = 40.0
NODE_RENEW_SECONDS = 10.0
NODE_LEASE_SELECTOR = f"{ROLE_LABEL}=node"
_NODE_PREFIX = "node-"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Pulse:
    """What one look at a Lease says of an agent. `silent_seconds`: since it last renewed; None: that cannot be told."""

    silent_seconds: float | None
    alive: bool


class NodeNameTaken(Exception):
    """A living agent with another node id uses this node's name; the message says what to do."""


class NodeHeartbeat:
    """The Lease that says that a node's agent is alive. One agent per node name at a time."""

    def __init__(
        self,
        client: ApiClient,
        node: NodeName,
        node_id: NodeId,
        *,
        clock_seconds: Callable[[], float] = time.monotonic,
        renew_every: float = NODE_RENEW_SECONDS,
        duration: float = NODE_LEASE_SECONDS,
    ) -> None:
        self._client = client
        self._node = node
        self._node_id = node_id
        self._now = clock_seconds
        self._renew_every = renew_every
        self._duration = duration
        self._path = paths.lease(_NODE_PREFIX + node)

    async def claim(self) -> None:
        """Take the Lease. Held by another node id, it is watched for its duration: is it renewed meanwhile, that agent
        is alive and this raises `NodeNameTaken`; else it is taken over. Raises `ApiUnavailable` too."""
        first = await self._read()
        if first is None or holder_of(first) in ("", self._node_id):
            await self.beat()
            return
        token = first["metadata"]["resourceVersion"]
        log.info("node_lease_held_by_another_id", node=self._node, holder=holder_of(first), waiting=self._duration)
        until = self._now() + self._duration
        while self._now() < until:
            await asyncio.sleep(min(self._renew_every, self._duration / 4))
            current = await self._read()
            if current is not None and current["metadata"]["resourceVersion"] != token:
                raise NodeNameTaken(
                    f"an agent with node id {holder_of(current)} is alive under the node name {self._node}; "
                    "give this machine another --node-name, or stop the other agent"
                )
        await self._write(first)

    async def beat(self) -> None:
        """Renew once. Raises `NodeNameTaken`, `ApiUnavailable`."""
        lease = await self._read()
        if lease is not None and holder_of(lease) not in ("", self._node_id):
            raise NodeNameTaken(
                f"the agent with node id {holder_of(lease)} took over the node name {self._node}; "
                "one of the two machines needs another --node-name"
            )
        await self._write(lease)

    async def run(self) -> NoReturn:
        """Renew until cancelled. An API server that is away is waited for; raises `NodeNameTaken` only."""
        while True:
            await asyncio.sleep(self._renew_every * random.uniform(0.9, 1.0))
            try:
                await self.beat()
            except ApiUnavailable as error:
                log.warning("node_lease_not_renewed", node=self._node, error=str(error))

    async def _read(self) -> Json | None:
        try:
            return await self._client.get(self._path, f"reading the Lease of node {self._node}")
        except ApiRefused as refused:
            if refused.code == 404 and refused.about == _NODE_PREFIX + self._node:
                return None
            raise ApiUnavailable(str(refused)) from refused

    async def _write(self, lease: Json | None) -> None:
        what = f"renewing the Lease of node {self._node}"
        now = clock.now_micro()
        spec = {
            "holderIdentity": self._node_id,
            "leaseDurationSeconds": max(1, int(self._duration)),
            "renewTime": now,
        }
        try:
            if lease is None:
                body = lease_body(_NODE_PREFIX + self._node, "node")
                await self._client.post(paths.leases(), what, {**body, "spec": {**spec, "acquireTime": now}})
            else:
                await self._client.put(self._path, what, {**lease, "spec": {**lease["spec"], **spec}})
        except ApiRefused as refused:
            raise ApiUnavailable(str(refused)) from refused


def node_of_lease(raw: Mapping[str, Any]) -> NodeName:
    """Whose heartbeat a Lease is."""
    return NodeName(str(raw["metadata"]["name"]).removeprefix(_NODE_PREFIX))


async def read_pulses(client: ApiClient) -> dict[NodeName, Pulse]:
    """Of every node that has a Lease. Raises `ApiUnavailable`."""
    leases = [
        raw async for page in client.pages(paths.leases(), "listing node Leases", NODE_LEASE_SELECTOR) for raw in page
    ]
    return {node_of_lease(raw): pulse_of(raw, client.server_time) for raw in leases}


def pulse_of(raw: Mapping[str, Any], now: datetime | None) -> Pulse:
    """`now`: by the API server's clock. The time of the renewal is by that clock, too: the server writes down when each
    writer last changed something (apimachinery, managedfieldsupdater.go), and an agent changes nothing but by renewing.
    `renewTime` is by the agent's clock, and tells nothing to whoever does not know how wrong that is."""
    renewed = [_time_of(entry) for entry in raw["metadata"].get("managedFields") or () if _wrote_renewal(entry)]
    if now is None or not renewed:
        return Pulse(None, alive=False)
    silent = max(0.0, (now - max(renewed)).total_seconds())
    lasts = (raw.get("spec") or {}).get("leaseDurationSeconds") or NODE_LEASE_SECONDS
    return Pulse(silent, alive=silent <= float(lasts))


def _wrote_renewal(entry: Mapping[str, Any]) -> bool:
    return "time" in entry and "f:renewTime" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})


def _time_of(entry: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(str(entry["time"]))
