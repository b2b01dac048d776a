"""RuntimeNodes: the agent's report of its node, and the controller's view of all nodes with who is alive.

Liveness is a Lease (`heartbeat.py`), not a field here: a heartbeat in a status would wake every watcher each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from perdure.api.names import API_VERSION, NODE_KIND, NodeId, NodeName
from perdure.api.node import NodeStatus, RuntimeNode, parse_node
from perdure.api.runtime import RequestStatus
from perdure.kube import clock, paths
from perdure.kube.client import ApiClient, ApiRefused, Json
from perdure.kube.heartbeat import NODE_LEASE_SECONDS, NODE_LEASE_SELECTOR, node_of_lease, pulse_of
from perdure.kube.lease import LeaseWatch
from perdure.kube.status import node_status_patch
from perdure.reconcile.ports.errors import ApiUnavailable

POLL_SECONDS = 10.0
LOOK_SECONDS = 60.0

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""uname's names to Go's, which Kubernetes uses in labels."""

log = structlog.get_logger(__name__)


class NodeReporter:
    """Writes one RuntimeNode: makes it if it is not there, its status when it differs, its spec never.

    What is there is looked at once a minute, because a person may have deleted or changed it.
    """

    def __init__(self, client: ApiClient, *, clock_seconds: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._now = clock_seconds
        self._last: RuntimeNode | None = None
        self._looked_at = 0.0

    async def report(self, name: NodeName, status: NodeStatus) -> None:
        """Raises `ApiUnavailable`."""
        what = f"reporting RuntimeNode {name}"
        try:
            node = await self._current(name, what)
            changes = node_status_patch(node.status, status, clock.now())
            if changes:
                # Forgotten until the answer is here: after an error the next report looks again.
                self._last = None
                path = paths.status(paths.node(name))
                node = parse_node(await self._client.merge_patch(path, what, {"status": changes}))
            self._last = node
        except ApiRefused as refused:
            raise ApiUnavailable(str(refused)) from refused

    async def read(self, name: NodeName) -> RuntimeNode | None:
        """The object as it is now. Raises `ApiUnavailable`."""
        what = f"reading RuntimeNode {name}"
        try:
            return _parse_node(await self._client.get(paths.node(name), what))
        except ApiRefused as refused:
            if refused.code == 404:
                return None
            raise ApiUnavailable(str(refused)) from refused

    async def answer(self, name: NodeName, answer: RequestStatus) -> None:
        """Write how a request was answered. Raises `ApiUnavailable`."""
        what = f"answering request {answer.id} of RuntimeNode {name}"
        fields = dict.fromkeys(("code", "message")) | msgspec.to_builtins(answer)
        try:
            self._last = None
            await self._client.merge_patch(paths.status(paths.node(name)), what, {"status": {"lastRequest": fields}})
        except ApiRefused as refused:
            raise ApiUnavailable(str(refused)) from refused

    async def _current(self, name: NodeName, what: str) -> RuntimeNode:
        if self._last is not None and self._last.name == name and self._now() - self._looked_at < LOOK_SECONDS:
            return self._last
        node = await self._read_or_create(name, what)
        self._looked_at = self._now()
        return node

    async def _read_or_create(self, name: NodeName, what: str) -> RuntimeNode:
        try:
            return parse_node(await self._client.get(paths.node(name), what))
        except ApiRefused as refused:
            if refused.code != 404:
                raise
        body: Json = {
            "apiVersion": API_VERSION,
            "kind": NODE_KIND,
            "metadata": {"name": name, "labels": default_labels(name)},
            "spec": {},
        }
        log.info("node_created", node=name)
        return parse_node(await self._client.post(paths.nodes(), what, body))


def default_labels(name: NodeName) -> dict[str, str]:
    """What kubelet puts on a Node too, so that the usual node selectors work."""
    machine = platform.machine()
    return {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": platform.system().lower(),
        "kubernetes.io/arch": _ARCHITECTURES.get(machine, machine),
    }


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node as the controller sees it. `alive`: its Lease was renewed within its duration, by our own clock."""

    node: RuntimeNode
    alive: bool


class NodeCache:
    """Every RuntimeNode, from the intake at once and from a list every few seconds; Leases from a list.

    A node counts as alive until its Lease was not renewed for its whole duration. How long it was silent when it is seen
    first the API server's clock says, alone; from then on it is watched by ours: clocks of machines are never compared.
    Without a Lease it is not alive.
    """

    def __init__(
        self,
        client: ApiClient,
        on_change: Callable[[], None] = lambda: None,
        *,
        clock_seconds: Callable[[], float] = time.monotonic,
        stale_after: float = NODE_LEASE_SECONDS,
    ) -> None:
        self._client = client
        self._on_change = on_change
        self._now = clock_seconds
        self._nodes: dict[NodeName, RuntimeNode] = {}
        self._leases: dict[NodeName, LeaseWatch] = {}
        self._stale_after = stale_after
        self._alive: frozenset[NodeName] = frozenset()
        self._unheard = asyncio.Event()
        """A watch showed a node whose Lease was not looked for yet."""
        self.synced = False
        """Whether every node was listed once."""

    def views(self) -> Sequence[NodeView]:
        """By name, so that choices made from it are the same each time."""
        now = self._now()
        return tuple(NodeView(node, self._is_alive(name, now)) for name, node in sorted(self._nodes.items()))

    def name_of(self, node_id: NodeId) -> NodeName | None:
        return next((node.name for node in self._nodes.values() if node.node_id == node_id), None)

    def apply(self, node: RuntimeNode) -> None:
        """One node as a watch shows it."""
        if node.name not in self._leases:
            self._unheard.set()
        if self._nodes.get(node.name) != node:
            self._nodes[node.name] = node
            self._on_change()

    async def refresh(self) -> None:
        """List nodes and Leases, and replace what is known as a whole. Raises `ApiUnavailable`."""
        nodes: dict[NodeName, RuntimeNode] = {}
        async for page in self._client.pages(paths.nodes(), "listing RuntimeNodes"):
            nodes |= {node.name: node for node in map(_parse_node, page)}
        leases: dict[NodeName, Json] = {}
        async for page in self._client.pages(paths.leases(), "listing node Leases", NODE_LEASE_SELECTOR):
            leases |= {node_of_lease(raw): raw for raw in page}
        self._replace(nodes, leases)

    async def run(self) -> None:
        """Refresh every few seconds until cancelled. An API server that is away changes nothing that is known."""
        while True:
            self._unheard.clear()
            try:
                await self.refresh()
            except ApiUnavailable as error:
                self._forgive()
                log.warning("nodes_not_listed", error=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS * random.uniform(0.9, 1.1)):
                    await self._unheard.wait()

    def _replace(self, nodes: dict[NodeName, RuntimeNode], leases: dict[NodeName, Json]) -> None:
        now = self._now()
        self._leases = {name: self._watched(name, raw, now) for name, raw in leases.items() if name in nodes}
        alive = frozenset(name for name in nodes if self._is_alive(name, now))
        changed = nodes != self._nodes or alive != self._alive or not self.synced
        self._nodes, self._alive, self.synced = nodes, alive, True
        if changed:
            self._on_change()

    def _watched(self, name: NodeName, raw: Json, now: float) -> LeaseWatch:
        renewal = str((raw.get("spec") or {}).get("renewTime", ""))
        watch = self._leases.get(name)
        if watch is not None:
            watch.see(renewal, now)
            return watch
        silent = pulse_of(raw, self._client.server_time).silent_seconds
        began = now - silent if silent is not None else now
        watch = LeaseWatch(began)
        watch.see(renewal, began)
        return watch

    def _forgive(self) -> None:
        # While we could not look, agents could not renew either: silence of that time says nothing about them.
        now = self._now()
        for name in self._alive:
            self._leases[name].forgive(now)

    def _is_alive(self, name: NodeName, now: float) -> bool:
        watch = self._leases.get(name)
        return watch is not None and watch.age(now) <= self._stale_after


def _parse_node(raw: dict[str, Any]) -> RuntimeNode:
    try:
        return parse_node(raw)
    except (KeyError, msgspec.ValidationError) as error:
        raise ApiUnavailable(f"reading RuntimeNodes: the answer holds what is none ({error})") from error
