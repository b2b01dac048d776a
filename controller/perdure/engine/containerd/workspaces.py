"""Workspaces as snapshots whose life is ours: held by a label and a lease, removed only when nothing refers to them.

containerd itself protects nothing here: `Snapshots.Remove` of a snapshot that a task runs on succeeds and destroys the
data. So every check stands in this file, in front of the call.
"""

from __future__ import annotations

import asyncio

import structlog

from perdure.api import names
from perdure.api.conditions import Reason
from perdure.api.names import InstallationId, RuntimeRef, SnapshotKey
from perdure.engine.containerd import overlay
from perdure.engine.containerd.errors import AlreadyExists, NotFound
from perdure.engine.containerd.labels import belongs_to, identity_labels, snapshot_labels
from perdure.engine.containerd.messages import ContainerRecord, Mount, SnapshotInfo, SnapshotKind
from perdure.engine.containerd.overlay import DiskLayers
from perdure.engine.containerd.services import Services
from perdure.plan.world import Workspace
from perdure.reconcile.ports.engine import Layer
from perdure.reconcile.ports.errors import EngineRefused, EngineUnavailable

_log = structlog.get_logger(__name__)


def lease_of(key: SnapshotKey) -> str:
    """The lease that holds a workspace; it has no expiry."""
    return f"ws-{key}"


def _missing(key: SnapshotKey) -> EngineRefused:
    return EngineRefused(
        f"snapshot {key} is not there; its data may be missing", reason=Reason.DATA_MISSING, blocks_data=True
    )


class Workspaces:
    """Called for the workspace methods of the port, and by tasks before one is started."""

    def __init__(self, services: Services, installation: InstallationId, address: str) -> None:
        self._services = services
        self._installation = installation
        self._address = address

    async def prepare(self, ref: RuntimeRef, workspace: Workspace) -> None:
        """See the port. Lease, its resource, then the snapshot: at no instant is the snapshot unprotected."""
        lease = lease_of(workspace.key)
        try:
            await self._services.create_lease(lease, identity_labels(ref, self._installation))
        except AlreadyExists:
            _log.debug("lease_already_there", lease=lease, uid=ref.uid)
        await self._services.lease_snapshot(lease, workspace.key)
        labels = snapshot_labels(ref, self._installation, workspace)
        try:
            await self._services.snapshots.prepare(workspace.key, workspace.chain_id, labels, lease)
        except AlreadyExists:
            await self._check_same(ref, workspace)
        except NotFound as error:
            raise EngineRefused(
                f"cannot make the workspace {workspace.key}: the layers {workspace.chain_id} of {workspace.image} are "
                f"not unpacked on the node ({error.text}); import the image again",
                reason=Reason.IMAGE_NOT_FOUND,
            ) from error

    async def _check_same(self, ref: RuntimeRef, workspace: Workspace) -> None:
        found = await self._services.snapshots.stat(workspace.key)
        if not belongs_to(found.labels, self._installation) or found.labels.get(names.ENGINE_LABEL_UID) != ref.uid:
            what = "belongs to somebody else"
        elif found.kind is not SnapshotKind.ACTIVE:
            what = f"is {found.kind.name.lower()}, not active"
        elif found.parent != workspace.chain_id:
            what = f"stands on other layers ({found.parent}, not {workspace.chain_id})"
        else:
            return
        raise EngineRefused(
            f"snapshot {workspace.key} is there already and {what}; it is left as it is. "
            "Find out whose data it holds before it is removed by hand",
            reason=Reason.SNAPSHOT_CONFLICT,
            blocks_data=True,
        )

    async def find(self, key: SnapshotKey) -> SnapshotInfo | None:
        """The snapshot of that key, whoever's it is; None only where containerd says that just this is missing."""
        try:
            return await self._services.snapshots.stat(key)
        except NotFound as error:
            if not error.is_about("snapshot", key):
                raise
            return None

    async def own(self, key: SnapshotKey) -> SnapshotInfo | None:
        """`find`, refusing a stranger's."""
        found = await self.find(key)
        if found is not None and not belongs_to(found.labels, self._installation):
            raise EngineRefused(
                f"snapshot {key} does not belong to this installation; it is left alone",
                reason=Reason.SNAPSHOT_CONFLICT,
                blocks_data=True,
            )
        return found

    async def open_gate(self, key: SnapshotKey) -> None:
        found = await self.own(key)
        if found is None or names.ENGINE_LABEL_GATE not in found.labels:
            return
        kept = {label: value for label, value in found.labels.items() if label != names.ENGINE_LABEL_GATE}
        await self._services.snapshots.replace_labels(key, kept)

    async def disk(self, key: SnapshotKey) -> tuple[tuple[Mount, ...], DiskLayers]:
        """Mounts and folders of a workspace. Raises `EngineRefused` where there is none or it is no overlay's."""
        try:
            mounts = await self._services.snapshots.mounts(key)
            return mounts, overlay.disk_layers(mounts)
        except NotFound as error:
            if not error.is_about("snapshot", key):
                raise
            raise _missing(key) from error
        except overlay.NotOverlay as error:
            raise EngineRefused(f"snapshot {key}: {error}", reason=Reason.INTERNAL_ERROR) from error

    async def refuse_if_in_use(self, key: SnapshotKey, layers: DiskLayers, doing: str) -> None:
        """Raise `EngineRefused` while any task, of any container, is on the snapshot: there is one writer or none.

        The mounts are asked and not containerd's lists: they show every task of every namespace, for far less work.
        """
        try:
            mountinfo = await asyncio.to_thread(overlay.mounts_of_engine, self._address)
        except overlay.UnseenMounts as error:
            raise EngineRefused(f"cannot {doing} {key}: {error}", reason=Reason.INTERNAL_ERROR) from error
        except OSError as error:
            raise EngineUnavailable(f"containerd at {self._address} cannot be reached: {error}") from error
        if overlay.is_mounted(layers.upper, mountinfo):
            users = ", ".join(record.id for record in await self.references(key)) or "unknown to our namespace"
            raise EngineRefused(
                f"cannot {doing} {key}: a task has it mounted (containers on it: {users}); stop that task first",
                reason=Reason.SNAPSHOT_CONFLICT,
            )

    async def usage(self, key: SnapshotKey) -> int:
        """Bytes in the writable layer. Raises `EngineRefused(DataMissing)` where there is none."""
        if await self.own(key) is None:
            raise _missing(key)
        return await self._services.snapshots.usage(key)

    async def layer(self, key: SnapshotKey) -> Layer:
        if await self.own(key) is None:
            raise _missing(key)
        _, layers = await self.disk(key)
        await self.refuse_if_in_use(key, layers, "read the layer of")
        try:
            staging = await asyncio.to_thread(overlay.make_staging, layers, key)
        except (overlay.NotOverlay, OSError) as error:
            raise EngineRefused(f"cannot stage a restore for {key}: {error}", reason=Reason.RESTORE_FAILED) from error
        return Layer(key=key, upper=layers.upper, staging_root=staging)

    async def references(self, key: SnapshotKey) -> tuple[ContainerRecord, ...]:
        """Records in our namespace that stand on the snapshot, strangers' included.

        containerd cannot filter records by snapshot (metadata/adaptors.go), so all are read.
        """
        records = await self._services.containers.list()
        return tuple(
            record
            for record in records
            if record.snapshot_key == key and record.snapshotter == self._services.snapshotter
        )

    async def remove(self, key: SnapshotKey) -> None:
        if await self.own(key) is not None:
            users = await self.references(key)
            if users:
                raise EngineRefused(
                    f"cannot remove snapshot {key}: container {users[0].id} refers to it; remove that one first",
                    reason=Reason.SNAPSHOT_CONFLICT,
                )
            _, layers = await self.disk(key)
            await self.refuse_if_in_use(key, layers, "remove snapshot")
            try:
                await asyncio.to_thread(overlay.remove_staging, layers, key)
            except (overlay.NotOverlay, OSError) as error:
                raise EngineRefused(
                    f"cannot remove what a restore left for {key}: {error}", reason=Reason.INTERNAL_ERROR
                ) from error
            try:
                await self._services.snapshots.remove(key)
            except NotFound as error:
                if not error.is_about("snapshot", key):
                    raise
        try:
            await self._services.delete_lease(lease_of(key))
        except NotFound as error:
            if not error.is_about("lease", lease_of(key)):
                raise
