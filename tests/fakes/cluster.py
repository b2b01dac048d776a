"""The API server in memory, for the crash matrix: both `Cluster` and `ControllerCluster`, and what people do with kubectl.

It passes `tests/contract/test_cluster_contract.py`, as the real one. What is stored is in a `ClusterState`, which
outlives the client object as etcd outlives a process. What it leaves out: validation and defaults of the CRDs.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol, TypeVar

import msgspec

from perdure.api.archive import object_name
from perdure.api.conditions import Reason
from perdure.api.names import (
    ANNOTATION_HOST_PORTS,
    FINALIZER,
    LABEL_NAMESPACE_UID,
    LABEL_NODE,
    LABEL_NODE_ID,
    InstallationId,
    Kind,
    NamespaceUid,
    NodeId,
    NodeName,
    RuntimeRef,
    Uid,
)
from perdure.api.network import write_host_ports
from perdure.api.node import NodeSpec, NodeStatus, RuntimeNode
from perdure.api.runtime import Condition, RequestStatus, Runtime, RuntimeSpec, RuntimeStatus
from perdure.plan.certainty import Absent, Certain, Present, Unknown
from perdure.plan.world import ArchiveFacts
from perdure.reconcile.ports.cluster import NO_PORTS, NamespaceFacts, Published
from perdure.reconcile.ports.errors import ApiUnavailable, SourceError, StatusConflict

Hook = Callable[[str, Literal["before", "after"]], None]
"""Called around every write with its name (`cluster.bind`); what it raises is the kill."""
Key = tuple[Kind, str, str]
_V = TypeVar("_V")
_INSTALLATION = InstallationId("installation")
_START = datetime(2026, 1, 1, tzinfo=UTC)


class Watcher(Protocol):
    """Who is told of changes at once, as by a watch."""

    def put(self, runtime: Runtime) -> None: ...

    def deleted(self, runtime: Runtime) -> None: ...


@dataclass(frozen=True, slots=True)
class Emitted:
    uid: Uid
    reason: str
    message: str
    warning: bool


@dataclass(slots=True)
class ClusterState:
    """What survives every process. The methods are what people do."""

    installation: InstallationId = _INSTALLATION
    version: int = 1
    namespaces: dict[str, NamespaceFacts] = field(default_factory=dict)
    runtimes: dict[Key, Runtime] = field(default_factory=dict)
    secrets: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    config_maps: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    archives: dict[tuple[str, str], ArchiveFacts] = field(default_factory=dict)
    nodes: dict[NodeName, NodeStatus] = field(default_factory=dict)
    node_annotations: dict[NodeName, dict[str, str]] = field(default_factory=dict)
    events: list[Emitted] = field(default_factory=list)
    watchers: list[Watcher] = field(default_factory=list)
    away: str | None = None
    """Why the API server does not answer; None: it does."""
    forbidden: set[str] = field(default_factory=set)
    """Plurals (`secrets`, `configmaps`, `namespaces`) that our processes may not read."""

    def now(self) -> str:
        """A clock that ticks with each change, so that tests see which came first."""
        return (_START + timedelta(seconds=self.version)).strftime("%Y-%m-%dT%H:%M:%SZ")

    def create_namespace(self, name: str, *, enforce: str = "") -> NamespaceFacts:
        facts = NamespaceFacts(NamespaceUid(str(uuid.uuid4())), terminating=False, enforce=enforce)
        self.namespaces[name] = facts
        return facts

    def terminate_namespace(self, name: str) -> None:
        """Delete it: nothing new may be made in it, and what is in it is deleted."""
        known = self.namespaces[name]
        self.namespaces[name] = NamespaceFacts(known.uid, terminating=True, enforce=known.enforce)
        for key in [key for key in self.runtimes if key[1] == name]:
            self.delete(*key)

    def create(self, kind: Kind, namespace: str, name: str, spec: RuntimeSpec) -> Runtime:
        self.version += 1
        runtime = Runtime(
            kind=kind,
            namespace=namespace,
            name=name,
            uid=Uid(str(uuid.uuid4())),
            generation=1,
            resource_version=str(self.version),
            labels={},
            annotations={},
            finalizers=(),
            deletion_timestamp=None,
            creation_timestamp=self.now(),
            spec=spec,
            status=RuntimeStatus(),
        )
        return self.store(runtime)

    def edit(self, kind: Kind, namespace: str, name: str, spec: RuntimeSpec) -> Runtime:
        known = self.runtimes[kind, namespace, name]
        generation = known.generation + (known.spec != spec)
        return self.change(known, spec=spec, generation=generation)

    def annotate(self, kind: Kind, namespace: str, name: str, annotations: Mapping[str, str]) -> Runtime:
        known = self.runtimes[kind, namespace, name]
        return self.change(known, annotations={**known.annotations, **annotations})

    def delete(self, kind: Kind, namespace: str, name: str) -> None:
        """`kubectl delete --wait=false`."""
        known = self.runtimes[kind, namespace, name]
        if not known.finalizers:
            self.remove(known)
        elif not known.terminating:
            self.change(known, deletion_timestamp=self.now(), generation=known.generation + 1)

    def change(self, known: Runtime, **changes: object) -> Runtime:
        """Store `known` with changes as the next version; a Terminating one without finalizers goes."""
        self.version += 1
        changed = msgspec.structs.replace(known, resource_version=str(self.version), **changes)
        if changed.terminating and not changed.finalizers:
            self.remove(changed)
            return changed
        return self.store(changed)

    def store(self, runtime: Runtime) -> Runtime:
        self.runtimes[runtime.kind, runtime.namespace, runtime.name] = runtime
        for watcher in self.watchers:
            watcher.put(runtime)
        return runtime

    def remove(self, runtime: Runtime) -> None:
        """It is gone, whatever its finalizers say (also: etcd was put back to an earlier day)."""
        del self.runtimes[runtime.kind, runtime.namespace, runtime.name]
        self.version += 1
        for watcher in self.watchers:
            watcher.deleted(msgspec.structs.replace(runtime, resource_version=str(self.version)))


class FakeCluster:
    """One process's client. `node_id` None: everything is in scope (the controller)."""

    def __init__(
        self, state: ClusterState | None = None, node_id: NodeId | None = None, on_call: Hook | None = None
    ) -> None:
        self.state = state or ClusterState()
        self._node_id = node_id
        self._on_call = on_call

    # ------------------------------------------------------------------------------------------ reading

    async def installation(self) -> InstallationId:
        self._reach("reading the installation")
        return self.state.installation

    async def namespace(self, name: str) -> NamespaceFacts:
        what = f"reading namespace {name}"
        self._reach(what)
        found = self.state.namespaces.get(name)
        if "namespaces" in self.state.forbidden or found is None:
            raise SourceError(f"{what}: it cannot be read", reason=Reason.NAMESPACE_UNREADABLE)
        return found

    async def get_namespace(self, name: str) -> NamespaceFacts | None:
        self._reach(f"reading namespace {name}")
        return self.state.namespaces.get(name)

    async def secret(self, namespace: str, name: str) -> Mapping[str, bytes]:
        return dict(self._source("secrets", self.state.secrets, namespace, name))

    async def config_map(self, namespace: str, name: str) -> Mapping[str, str]:
        return dict(self._source("configmaps", self.state.config_maps, namespace, name))

    async def look_up(self, ref: RuntimeRef) -> Certain[Runtime]:
        if self.state.away is not None:
            return Unknown(self.state.away)
        found = self.state.runtimes.get((ref.kind, ref.namespace, ref.name))
        return Present(found) if found is not None and found.uid == ref.uid else Absent()

    async def list_uids(self, kind: Kind) -> Mapping[Uid, Runtime]:
        self._reach(f"listing {kind.plural}")
        return {
            runtime.uid: runtime
            for runtime in self.state.runtimes.values()
            if runtime.kind is kind and self._node_id in (None, runtime.node_id)
        }

    # ------------------------------------------------------------------------------------------ writing

    async def write_status(self, runtime: Runtime, status: RuntimeStatus) -> Runtime:
        what = f"writing the status of {runtime.key}"
        known = runtime
        if _dated(known.status, status, "") == known.status:
            return runtime
        self._call("write_status", "before", what)
        known = self._same(runtime, what)
        dated = _dated(known.status, status, self.state.now())
        written = known if dated == known.status else self.state.change(known, status=dated)
        self._call("write_status", "after", what)
        return written

    async def emit(self, runtime: Runtime, *, reason: str, message: str, warning: bool) -> None:
        if self.state.away is not None:
            return
        self._call("emit", "before", reason)
        self.state.events.append(Emitted(runtime.uid, reason, message, warning))
        self._call("emit", "after", reason)

    async def report_node(self, name: NodeName, status: NodeStatus) -> None:
        what = f"reporting RuntimeNode {name}"
        self._call("report_node", "before", what)
        before = self.state.nodes.get(name)
        kept = status.last_request or (before.last_request if before is not None else None)
        self.state.nodes[name] = msgspec.structs.replace(status, last_request=kept)
        self._call("report_node", "after", what)

    async def read_node(self, name: NodeName) -> RuntimeNode | None:
        what = f"reading RuntimeNode {name}"
        self._call("read_node", "before", what)
        status = self.state.nodes.get(name)
        if status is None:
            return None
        return RuntimeNode(
            name=name,
            uid=f"uid-{name}",
            resource_version="1",
            labels={},
            annotations=self.state.node_annotations.get(name, {}),
            terminating=False,
            spec=NodeSpec(),
            status=status,
        )

    async def answer_node(self, name: NodeName, answer: RequestStatus) -> None:
        what = f"answering request {answer.id} of RuntimeNode {name}"
        self._call("answer_node", "before", what)
        self.state.nodes[name] = msgspec.structs.replace(self.state.nodes[name], last_request=answer)
        self._call("answer_node", "after", what)

    async def bind(
        self,
        runtime: Runtime,
        node: NodeName,
        node_id: NodeId,
        namespace_uid: NamespaceUid,
        host_ports: Mapping[str, int] = NO_PORTS,
    ) -> Runtime:
        what = f"binding {runtime.key} to node {node}"
        labels = {LABEL_NODE: node, LABEL_NODE_ID: node_id, LABEL_NAMESPACE_UID: namespace_uid}
        if runtime.terminating and not runtime.protected:
            raise StatusConflict(f"{what}: it is being deleted and was never protected")
        wanted = write_host_ports(host_ports)
        same_ports = runtime.annotations.get(ANNOTATION_HOST_PORTS) == wanted
        if runtime.protected and labels.items() <= runtime.labels.items() and same_ports:
            return runtime
        self._call("bind", "before", what)
        known = self._same(runtime, what)
        if known.resource_version != runtime.resource_version:
            raise StatusConflict(f"{what}: it changed since it was read")
        finalizers = known.finalizers if known.protected else (*known.finalizers, FINALIZER)
        annotations = {name: value for name, value in known.annotations.items() if name != ANNOTATION_HOST_PORTS}
        if wanted is not None:
            annotations[ANNOTATION_HOST_PORTS] = wanted
        bound = self.state.change(
            known, labels={**known.labels, **labels}, annotations=annotations, finalizers=finalizers
        )
        self._call("bind", "after", what)
        return bound

    async def release(self, runtime: Runtime) -> None:
        what = f"taking the finalizer off {runtime.key}"
        self._call("release", "before", what)
        known = self.state.runtimes.get((runtime.kind, runtime.namespace, runtime.name))
        if known is not None and known.uid == runtime.uid and known.protected:
            self.state.change(known, finalizers=tuple(name for name in known.finalizers if name != FINALIZER))
        self._call("release", "after", what)

    async def publish_archive(self, archive: ArchiveFacts) -> Published:
        what = f"listing archive {archive.sequence}"
        self._call("publish_archive", "before", what)
        namespace = self.state.namespaces.get(archive.namespace)
        if namespace is None or namespace.terminating:
            return Published.NAMESPACE_GONE
        found = self.state.archives.setdefault(_archive_key(archive), archive)
        if (found.uid, found.sequence) != (archive.uid, archive.sequence):
            raise StatusConflict(f"{what}: an object of that name lists something else")
        self._call("publish_archive", "after", what)
        return Published.DONE

    async def unpublish_archive(self, archive: ArchiveFacts) -> None:
        what = f"taking archive {archive.sequence} down"
        self._call("unpublish_archive", "before", what)
        found = self.state.archives.get(_archive_key(archive))
        if found is not None and (found.uid, found.sequence) == (archive.uid, archive.sequence):
            del self.state.archives[_archive_key(archive)]
        self._call("unpublish_archive", "after", what)

    # ------------------------------------------------------------------------------------------ inside

    def _reach(self, what: str) -> None:
        if self.state.away is not None:
            raise ApiUnavailable(f"{what}: {self.state.away}")

    def _call(self, name: str, when: Literal["before", "after"], what: str) -> None:
        if self._on_call is not None:
            self._on_call(f"cluster.{name}", when)
        if when == "before":
            self._reach(what)

    def _same(self, runtime: Runtime, what: str) -> Runtime:
        known = self.state.runtimes.get((runtime.kind, runtime.namespace, runtime.name))
        if known is None or known.uid != runtime.uid:
            raise StatusConflict(f"{what}: it is gone")
        return known

    def _source(
        self, plural: str, sources: Mapping[tuple[str, str], Mapping[str, _V]], namespace: str, name: str
    ) -> Mapping[str, _V]:
        what = f"reading {plural} {namespace}/{name}"
        self._reach(what)
        if plural in self.state.forbidden:
            raise SourceError(f"{what}: the right get on {plural} is missing", reason=Reason.ENV_SOURCE_FORBIDDEN)
        if (namespace, name) not in sources:
            raise SourceError(f"{what}: not there", reason=Reason.ENV_SOURCE_MISSING, user_error=True)
        return sources[namespace, name]


def _archive_key(archive: ArchiveFacts) -> tuple[str, str]:
    return archive.namespace, archive.object_name or object_name(archive.kind, archive.name, archive.sequence)


def _dated(old: RuntimeStatus, new: RuntimeStatus, now: str) -> RuntimeStatus:
    """`new` with the times of conditions whose status did not change."""
    before = {condition.type: condition for condition in old.conditions}

    def since(condition: Condition) -> str:
        known = before.get(condition.type)
        same = known is not None and known.status == condition.status
        return known.last_transition_time if known is not None and same else now

    conditions = tuple(msgspec.structs.replace(c, last_transition_time=since(c)) for c in new.conditions)
    return msgspec.structs.replace(new, conditions=conditions)
