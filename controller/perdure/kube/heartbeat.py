"""The Lease by which an agent says that it and its node are alive; the controller's `NodeCache` reads it.

Called by the agent's composition root: `claim` once at the start, then `run` beside everything else.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
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
