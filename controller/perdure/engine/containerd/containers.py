"""Container records: made from a plan, replaced by a newer plan while no task runs on them, removed after their task.

containerd deletes a record with a live task without a word (and leaks the task), so that is checked here first.
"""

from __future__ import annotations

import asyncio

from perdure.api import names
from perdure.api.conditions import Reason
from perdure.api.names import ContainerId
from perdure.engine import merged_tree
from perdure.engine.containerd.errors import NotFound
from perdure.engine.containerd.labels import belongs_to, identity_labels, uid_of
from perdure.engine.containerd.messages import ContainerRecord, Process
from perdure.engine.containerd.overlay import DiskLayers
from perdure.engine.containerd.services import Services
from perdure.engine.containerd.settings import ContainerdSettings
from perdure.engine.containerd.workspaces import Workspaces
from perdure.engine.mounted_files import MountedFileStore
from perdure.engine.oci import schema
from perdure.engine.oci.builder import Surroundings, build_spec
from perdure.engine.oci.node import NodeFeatures
from perdure.engine.oci.users import resolve_user
from perdure.reconcile.ports.engine import ContainerPlan
from perdure.reconcile.ports.errors import EngineRefused

ACCOUNT_FILE_BYTES = 1 << 20
"""Largest /etc/passwd or /etc/group that is read."""


class Containers:
    """Called for `create_container` and `remove_container` of the port, and by tasks."""

    def __init__(
        self,
        services: Services,
        settings: ContainerdSettings,
        workspaces: Workspaces,
        files: MountedFileStore,
        node: NodeFeatures,
    ) -> None:
        self._services = services
        self._settings = settings
        self._workspaces = workspaces
        self._files = files
        self._node = node

    async def find(self, container: ContainerId) -> ContainerRecord | None:
        """Our record of that id. Raises `EngineRefused` if somebody else's has it."""
        try:
            record = await self._services.containers.get(container)
        except NotFound as error:
            if not error.is_about("container", container):
                raise
            return None
        if not belongs_to(record.labels, self._settings.installation):
            raise EngineRefused(
                f"container {container} does not belong to this installation; it is left alone",
                reason=Reason.SNAPSHOT_CONFLICT,
                blocks_data=True,
            )
        return record

    async def task_of(self, container: ContainerId) -> Process | None:
        """Its task as containerd has it, or None where there is no task or no record."""
        try:
            return await self._services.tasks.get(container)
        except NotFound as error:
            if not (error.is_about("task", container) or error.is_about("container", container)):
                raise
            return None

    async def create(self, plan: ContainerPlan) -> None:
        """See the port."""
        existing, task, disk, snapshot = await asyncio.gather(
            self.find(plan.id), self.task_of(plan.id), self._workspaces.disk(plan.key), self._workspaces.own(plan.key)
        )
        if snapshot is None or snapshot.labels.get(names.ENGINE_LABEL_UID) != plan.ref.uid:
            raise EngineRefused(
                f"cannot make container {plan.id}: snapshot {plan.key} is not this runtime's",
                reason=Reason.SNAPSHOT_CONFLICT,
                blocks_data=True,
            )
        if existing is not None and task is not None:
            if _is_made_from(existing, plan):
                return
            raise EngineRefused(
                f"cannot change container {plan.id}: it has a task; stop and delete that first",
                reason=Reason.START_FAILED,
            )
        user = await asyncio.to_thread(_user, plan, disk[1])
        try:
            files = await asyncio.to_thread(self._files.write, plan.ref, plan.spec)
        except OSError as error:
            raise EngineRefused(
                f"cannot write the files that container {plan.id} is to find in /etc: {error}; look at the state folder",
                reason=Reason.START_FAILED,
            ) from error
        around = Surroundings(user=user, files=files, cgroup_parent=self._settings.cgroup_parent, node=self._node)
        record = ContainerRecord(
            id=plan.id,
            labels=identity_labels(plan.ref, self._settings.installation)
            | {names.ENGINE_LABEL_SPEC: plan.spec_hash, names.ENGINE_LABEL_IMAGE_DIGEST: plan.image.digest},
            image=plan.image.name,
            snapshotter=self._settings.snapshotter,
            snapshot_key=plan.key,
            spec=schema.encode(build_spec(plan, around)),
            runtime=self._settings.runtime,
        )
        if existing is None:
            await self._services.containers.create(record, self._settings.runc_root)
        else:
            await self._services.containers.replace(record, self._settings.runc_root)

    async def remove(self, container: ContainerId) -> None:
        """See the port; the files that were mounted into it go too."""
        record, task = await asyncio.gather(self.find(container), self.task_of(container))
        if task is not None:
            raise EngineRefused(
                f"cannot remove container {container}: it has a task; stop and delete that first",
                reason=Reason.STOP_TIMED_OUT,
            )
        if record is not None:
            try:
                await self._services.containers.delete(container)
            except NotFound as error:
                if not error.is_about("container", container):
                    raise
        uid = uid_of(container)
        if uid is None:
            return
        try:
            await asyncio.to_thread(self._files.remove, uid)
        except OSError as error:
            raise EngineRefused(
                f"cannot remove the files of container {container}: {error}; look at the state folder",
                reason=Reason.INTERNAL_ERROR,
            ) from error


def _is_made_from(record: ContainerRecord, plan: ContainerPlan) -> bool:
    return record.snapshot_key == plan.key and record.labels.get(names.ENGINE_LABEL_SPEC) == plan.spec_hash


def _user(plan: ContainerPlan, layers: DiskLayers) -> schema.User:
    """The ids of the process, names looked up in the workspace's own /etc. Blocking."""
    wanted = plan.spec.user if plan.spec.user is not None else plan.image.user
    contents = {}
    for path in ("etc/passwd", "etc/group"):
        try:
            contents[path] = merged_tree.read_file(layers.all, path, limit=ACCOUNT_FILE_BYTES) or b""
        except (merged_tree.UnreadableFile, OSError) as error:
            raise EngineRefused(
                f"cannot make container {plan.id}: the user {wanted!r} cannot be looked up: {error}",
                reason=Reason.USER_NOT_FOUND,
                user_error=True,
            ) from error
    return resolve_user(wanted, passwd=contents["etc/passwd"], group=contents["etc/group"])
