"""`KubeCluster`: what an agent asks of the API server, as the `Cluster` port. Composed in `perdure.cli`."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass

from perdure.api.conditions import Reason
from perdure.api.names import LABEL_NODE_ID, InstallationId, Kind, NamespaceUid, NodeId, NodeName, RuntimeRef, Uid
from perdure.api.node import NodeStatus, RuntimeNode
from perdure.api.runtime import RequestStatus, Runtime, RuntimeStatus
from perdure.kube import paths
from perdure.kube.client import ApiClient, ApiRefused, Json
from perdure.kube.events import EventRecorder
from perdure.kube.nodes import NodeReporter
from perdure.kube.runtimes import RuntimeObjects
from perdure.plan.certainty import Certain
from perdure.reconcile.ports.cluster import NamespaceFacts
from perdure.reconcile.ports.errors import ApiUnavailable, SourceError
from perdure.telemetry.metrics import Metrics

SYSTEM_NAMESPACE = "kube-system"
"""Made by the API server at its first start and never deleted: its uid tells one cluster from another."""
ENFORCE_LABEL = "pod-security.kubernetes.io/enforce"


@dataclass(frozen=True, slots=True)
class _Named:
    """A Secret or ConfigMap as messages and errors call it."""

    kind: str
    plural: str
    namespace: str
    name: str

    @property
    def what(self) -> str:
        return f"reading {self.kind} {self.namespace}/{self.name}"


def node_selector(node_id: NodeId) -> str:
    """What an agent lists and watches: the label that a binding publishes."""
    return f"{LABEL_NODE_ID}={node_id}"


class KubeCluster:
    """See `perdure.reconcile.ports.cluster.Cluster`. `node_id` None: everything is in scope (the controller)."""

    def __init__(self, client: ApiClient, metrics: Metrics, *, host: str, node_id: NodeId | None) -> None:
        component = "perdure-controller" if node_id is None else "perdure-agent"
        self._client = client
        self._objects = RuntimeObjects(
            client,
            "" if node_id is None else node_selector(node_id),
            lambda code: metrics.status_patches.labels(code=str(code)).inc(),
        )
        self._events = EventRecorder(client, component, host, metrics.events_lost.inc)
        self._reporter = NodeReporter(client)

    async def installation(self) -> InstallationId:
        return InstallationId((await self.namespace(SYSTEM_NAMESPACE)).uid)

    async def namespace(self, name: str) -> NamespaceFacts:
        what = f"reading namespace {name}"
        try:
            found = await find_namespace(self._client, name)
        except ApiRefused as refused:
            hint = "; give this process the right get on namespaces (deploy/rbac/)" if refused.code == 403 else ""
            raise SourceError(f"{refused}{hint}", reason=Reason.NAMESPACE_UNREADABLE) from refused
        if found is None:
            raise SourceError(f"{what}: there is none of this name", reason=Reason.NAMESPACE_UNREADABLE)
        return found

    async def secret(self, namespace: str, name: str) -> Mapping[str, bytes]:
        named = _Named("Secret", "secrets", namespace, name)
        data = await self._read_source(named, paths.secret(namespace, name), "data")
        try:
            return {key: base64.b64decode(value, validate=True) for key, value in data.items()}
        except binascii.Error:
            # From None: the cause would carry a part of the value.
            raise ApiUnavailable(f"{named.what}: a value in the answer is not base64") from None

    async def config_map(self, namespace: str, name: str) -> Mapping[str, str]:
        named = _Named("ConfigMap", "configmaps", namespace, name)
        return await self._read_source(named, paths.config_map(namespace, name), "data")

    async def look_up(self, ref: RuntimeRef) -> Certain[Runtime]:
        return await self._objects.look_up(ref)

    async def list_uids(self, kind: Kind) -> Mapping[Uid, Runtime]:
        return await self._objects.list_uids(kind)

    async def write_status(self, runtime: Runtime, status: RuntimeStatus) -> Runtime:
        return await self._objects.write_status(runtime, status)

    async def emit(self, runtime: Runtime, *, reason: str, message: str, warning: bool) -> None:
        await self._events.emit(runtime, reason=reason, message=message, warning=warning)

    async def report_node(self, name: NodeName, status: NodeStatus) -> None:
        await self._reporter.report(name, status)

    async def read_node(self, name: NodeName) -> RuntimeNode | None:
        return await self._reporter.read(name)

    async def answer_node(self, name: NodeName, answer: RequestStatus) -> None:
        await self._reporter.answer(name, answer)

    async def _read_source(self, named: _Named, path: str, field: str) -> dict[str, str]:
        try:
            answer = await self._client.get(path, named.what)
        except ApiRefused as refused:
            raise _source_error(named, refused) from refused
        found = answer.get(field) or {}
        return {str(key): str(value) for key, value in found.items()}


async def find_namespace(client: ApiClient, name: str) -> NamespaceFacts | None:
    """None if the server says that there is none of this name. Raises `ApiRefused`, `ApiUnavailable`."""
    try:
        raw: Json = await client.get(paths.namespace(name), f"reading namespace {name}")
    except ApiRefused as refused:
        if refused.code == 404 and refused.about == name:
            return None
        raise
    meta = raw["metadata"]
    return NamespaceFacts(
        uid=NamespaceUid(meta["uid"]),
        terminating="deletionTimestamp" in meta or (raw.get("status") or {}).get("phase") == "Terminating",
        enforce=str((meta.get("labels") or {}).get(ENFORCE_LABEL, "")),
    )


def _source_error(named: _Named, refused: ApiRefused) -> SourceError:
    if refused.code == 403:
        return SourceError(
            f"{named.what}: the node's agent lacks the right get on {named.plural} in namespace {named.namespace}; "
            "grant it with a RoleBinding to the agent's ServiceAccount (see deploy/rbac/), then it is tried again",
            reason=Reason.ENV_SOURCE_FORBIDDEN,
        )
    if refused.code == 404:
        return SourceError(
            f"{named.kind} {named.namespace}/{named.name} does not exist; create it, or take it out of spec.env",
            reason=Reason.ENV_SOURCE_MISSING,
            user_error=True,
        )
    return SourceError(str(refused), reason=Reason.ENV_SOURCE_MISSING)
