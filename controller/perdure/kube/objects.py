"""`KubeControllerCluster`: what the controller alone may write. The finalizer, the published binding, RuntimeArchives.

Every write is decided on one resourceVersion and can be repeated: what is already as wanted is not written again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from perdure.api.archive import ArchiveStatus
from perdure.api.names import (
    ANNOTATION_HOST_PORTS,
    FINALIZER,
    LABEL_NAMESPACE_UID,
    LABEL_NODE,
    LABEL_NODE_ID,
    NamespaceUid,
    NodeId,
    NodeName,
)
from perdure.api.network import write_host_ports
from perdure.api.runtime import Runtime
from perdure.kube import paths
from perdure.kube.archives import ArchiveObject, archive_body, archive_name, archive_status, parse_archive
from perdure.kube.client import ApiClient, ApiRefused
from perdure.kube.cluster import KubeCluster, find_namespace
from perdure.plan.world import ArchiveFacts
from perdure.reconcile.ports.cluster import NO_PORTS, NamespaceFacts, Published
from perdure.reconcile.ports.errors import ApiUnavailable, StatusConflict
from perdure.telemetry.metrics import Metrics

_ATTEMPTS = 4
_TERMINATING = "NamespaceTerminating"
"""Cause of a 403 for anything new in a namespace that goes (plugin/pkg/admission/namespace/lifecycle)."""


def bind_patch(runtime: Runtime, labels: Mapping[str, str], host_ports: str | None) -> dict[str, Any]:
    """The `metadata` that binds: our finalizer beside everybody else's, the labels, and the ports on the node.

    Empty if it is so already.
    """
    patch: dict[str, Any] = {}
    if runtime.annotations.get(ANNOTATION_HOST_PORTS) != host_ports:
        patch["annotations"] = {ANNOTATION_HOST_PORTS: host_ports}
    if any(runtime.labels.get(key) != value for key, value in labels.items()):
        patch["labels"] = dict(labels)
    if not runtime.protected:
        # A merge patch replaces the list: other people's finalizers must be in it.
        patch["finalizers"] = [*runtime.finalizers, FINALIZER]
    return patch


def release_patch(runtime: Runtime) -> dict[str, Any]:
    """The `metadata` that takes our finalizer off, and only ours. Empty if it is off."""
    if not runtime.protected:
        return {}
    return {"finalizers": [name for name in runtime.finalizers if name != FINALIZER]}


class KubeControllerCluster(KubeCluster):
    """See `perdure.reconcile.ports.cluster.ControllerCluster`. `node_name` names the node of an id, for RuntimeArchives."""

    def __init__(
        self, client: ApiClient, metrics: Metrics, *, host: str, node_name: Callable[[NodeId], NodeName | None]
    ) -> None:
        super().__init__(client, metrics, host=host, node_id=None)
        self._client = client
        self._node_name = node_name

    async def get_namespace(self, name: str) -> NamespaceFacts | None:
        """None if the server says that there is no such namespace. Raises `ApiUnavailable`."""
        try:
            return await find_namespace(self._client, name)
        except ApiRefused as refused:
            raise ApiUnavailable(str(refused)) from refused

    async def bind(
        self,
        runtime: Runtime,
        node: NodeName,
        node_id: NodeId,
        namespace_uid: NamespaceUid,
        host_ports: Mapping[str, int] = NO_PORTS,
    ) -> Runtime:
        """Raises `StatusConflict` if the object is newer, gone, or Terminating without our finalizer."""
        what = f"binding {runtime.key} to node {node}"
        if runtime.terminating and not runtime.protected:
            raise StatusConflict(f"{what}: it is being deleted and was never protected")
        labels = {LABEL_NODE: node, LABEL_NODE_ID: node_id, LABEL_NAMESPACE_UID: namespace_uid}
        metadata = bind_patch(runtime, labels, write_host_ports(host_ports))
        if not metadata:
            return runtime
        try:
            return await self._objects.patch_metadata(runtime, metadata, what)
        except ApiRefused as refused:
            if refused.code in (404, 409):
                raise StatusConflict(str(refused)) from refused
            if refused.code == 422 and "finalizers" in refused.text:
                # Its deletion began meanwhile, and the server takes no new finalizer on a Terminating object.
                raise StatusConflict(str(refused)) from refused
            raise ApiUnavailable(str(refused)) from refused

    async def release(self, runtime: Runtime) -> None:
        """Repeated on the newest version after a conflict. Raises `StatusConflict` if it keeps changing."""
        what = f"taking the finalizer off {runtime.key}"
        current: Runtime | None = runtime
        for _ in range(_ATTEMPTS):
            if current is None or current.uid != runtime.uid:
                return
            metadata = release_patch(current)
            if not metadata:
                return
            try:
                await self._objects.patch_metadata(current, metadata, what)
            except ApiRefused as refused:
                if refused.code not in (404, 409):
                    raise ApiUnavailable(str(refused)) from refused
                current = await self._read_again(runtime)
            else:
                return
        raise StatusConflict(f"{what}: it keeps changing; it is tried again with the next version that is seen")

    async def publish_archive(self, archive: ArchiveFacts) -> Published:
        """Create the object and write its status; one that lists this archive already is completed.

        Raises `StatusConflict` if an object of that name lists something else.
        """
        name = archive_name(archive)
        what = f"listing archive {archive.sequence} as RuntimeArchive {archive.namespace}/{name}"
        found = await self._create_archive(archive, what)
        if found is None:
            return Published.NAMESPACE_GONE
        if not found.is_about(archive):
            raise StatusConflict(f"{what}: an object of that name lists something else; delete or rename it")
        wanted = archive_status(archive, self._node_name(archive.node_id) if archive.node_id else None)
        if found.status != wanted:
            await self._write_archive_status(found, wanted, what)
        return Published.DONE

    async def unpublish_archive(self, archive: ArchiveFacts) -> None:
        """Delete the object if it is there and lists exactly this archive."""
        name = archive_name(archive)
        what = f"taking RuntimeArchive {archive.namespace}/{name} down"
        path = paths.archive(archive.namespace, name)
        try:
            found = await self._read_archive(path, name, what)
            if found is not None and found.is_about(archive):
                await self._client.delete(path, what, found.uid)
        except ApiRefused as refused:
            # 409: it was deleted and another one of the name was made meanwhile, which is not ours to delete.
            if refused.code not in (404, 409):
                raise ApiUnavailable(str(refused)) from refused

    async def _create_archive(self, archive: ArchiveFacts, what: str) -> ArchiveObject | None:
        """The object, made or found; None if the namespace takes none."""
        name = archive_name(archive)
        try:
            made = await self._client.post(paths.archives(archive.namespace), what, archive_body(archive))
        except ApiRefused as refused:
            if _namespace_is_going(refused, archive.namespace):
                return None
            if refused.code != 409:
                raise ApiUnavailable(str(refused)) from refused
        else:
            return _parse(made, what)
        try:
            found = await self._read_archive(paths.archive(archive.namespace, name), name, what)
        except ApiRefused as refused:
            raise ApiUnavailable(str(refused)) from refused
        if found is None:
            raise ApiUnavailable(f"{what}: it was deleted at the same time; it is tried again")
        return found

    async def _write_archive_status(self, found: ArchiveObject, wanted: ArchiveStatus, what: str) -> None:
        path = paths.status(paths.archive(found.namespace, found.name))
        # omit_defaults leaves `phase` out, which people look at.
        status = {**msgspec.to_builtins(wanted), "phase": wanted.phase}
        try:
            await self._client.merge_patch(path, what, {"status": status})
        except ApiRefused as refused:
            raise ApiUnavailable(str(refused)) from refused

    async def _read_archive(self, path: str, name: str, what: str) -> ArchiveObject | None:
        try:
            return _parse(await self._client.get(path, what), what)
        except ApiRefused as refused:
            if refused.code == 404 and refused.about == name:
                return None
            raise

    async def _read_again(self, runtime: Runtime) -> Runtime | None:
        try:
            return await self._objects.read(runtime.kind, runtime.namespace, runtime.name)
        except ApiRefused as refused:
            raise ApiUnavailable(str(refused)) from refused


def _parse(raw: dict[str, Any], what: str) -> ArchiveObject:
    try:
        return parse_archive(raw)
    except (KeyError, msgspec.ValidationError) as error:
        raise ApiUnavailable(f"{what}: the answer is no RuntimeArchive ({error})") from error


def _namespace_is_going(refused: ApiRefused, namespace: str) -> bool:
    if refused.code == 403:
        return any(reason == _TERMINATING for reason, _ in refused.causes)
    return refused.code == 404 and refused.kind == "namespaces" and refused.about == namespace
