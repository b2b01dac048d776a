"""The API server as the agent and as the controller need it, and the cache of its objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol

from perdure.api.names import (
    InstallationId,
    Kind,
    NamespaceUid,
    NodeId,
    NodeName,
    RuntimeRef,
    Uid,
)
from perdure.api.node import NodeStatus, RuntimeNode
from perdure.api.runtime import RequestStatus, Runtime, RuntimeStatus
from perdure.plan.certainty import Certain
from perdure.plan.world import (
    ArchiveFacts,
)


class Objects(Protocol):
    """The cache of objects: latest version wins, whoever brought it."""

    def get(self, uid: Uid) -> Runtime | None:
        """None also for one that a watch or a list says is gone: whoever needs to know asks the API server."""

    def put(self, runtime: Runtime) -> None:
        """Take a version in, unless a newer one is there."""

    def learn(self, runtime: Runtime) -> None:
        """The same for the answer to a write of our own to /status: that alone wakes nobody."""

    def uids(self) -> Sequence[Uid]: ...


@dataclass(frozen=True, slots=True)
class NamespaceFacts:
    uid: NamespaceUid
    terminating: bool
    enforce: str
    """`pod-security.kubernetes.io/enforce`, or empty."""


class Cluster(Protocol):
    """What an agent asks of the API server. Raises `ApiUnavailable`, `SourceError`, `StatusConflict`."""

    async def installation(self) -> InstallationId: ...

    async def namespace(self, name: str) -> NamespaceFacts: ...

    async def secret(self, namespace: str, name: str) -> Mapping[str, bytes]: ...

    async def config_map(self, namespace: str, name: str) -> Mapping[str, str]: ...

    async def look_up(self, ref: RuntimeRef) -> Certain[Runtime]:
        """A read of exactly this object, past the cache: `Absent` if 404 or another uid under the name."""

    async def list_uids(self, kind: Kind) -> Mapping[Uid, Runtime]:
        """All objects of the kind in this process's scope, read in chunks; raises rather than return a part."""

    async def write_status(self, runtime: Runtime, status: RuntimeStatus) -> Runtime:
        """One merge patch of /status; returns the object as it is now. Raises `StatusConflict` when it is gone or newer
        in a way that matters."""

    async def emit(self, runtime: Runtime, *, reason: str, message: str, warning: bool) -> None:
        """One Event. Best effort: failures are counted and logged, not raised."""

    async def report_node(self, name: NodeName, status: NodeStatus) -> None: ...

    async def read_node(self, name: NodeName) -> RuntimeNode | None:
        """The node's own object, past any cache; None: there is none."""

    async def answer_node(self, name: NodeName, answer: RequestStatus) -> None:
        """Say how far a request of the node came, or how it was answered."""


class Published(StrEnum):
    """What became of a RuntimeArchive that was to be created."""

    DONE = "done"
    NAMESPACE_GONE = "namespace_gone"
    """The namespace is going or gone and takes no new objects: the ledger row alone is the record."""


NO_PORTS: Mapping[str, int] = MappingProxyType({})


class ControllerCluster(Protocol):
    """What the controller asks of the API server. Raises `ApiUnavailable`, `StatusConflict`."""

    async def get_namespace(self, name: str) -> NamespaceFacts | None: ...

    async def look_up(self, ref: RuntimeRef) -> Certain[Runtime]:
        """As `Cluster.look_up`."""

    async def bind(
        self,
        runtime: Runtime,
        node: NodeName,
        node_id: NodeId,
        namespace_uid: NamespaceUid,
        host_ports: Mapping[str, int] = NO_PORTS,
    ) -> Runtime:
        """Finalizer, the three binding labels and the ports on the node, in one merge patch, with resourceVersion."""

    async def release(self, runtime: Runtime) -> None:
        """Take our finalizer off, and only ours. Already off, or the object gone: nothing."""

    async def publish_archive(self, archive: ArchiveFacts) -> Published: ...

    async def unpublish_archive(self, archive: ArchiveFacts) -> None: ...

    async def emit(self, runtime: Runtime, *, reason: str, message: str, warning: bool) -> None:
        """As `Cluster.emit`."""

    async def write_status(self, runtime: Runtime, status: RuntimeStatus) -> Runtime: ...
