"""containerd's services as typed calls: messages go no further than this file and `messages`.

Called by the parts of the engine. Each method is one RPC (or one stream read to its end); names and meanings are
containerd's own (github.com/containerd/containerd/api/services).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import grpc

from perdure.engine.containerd.errors import RpcFailed
from perdure.engine.containerd.messages import (
    ContainerRecord,
    Descriptor,
    Event,
    Mount,
    Process,
    SnapshotInfo,
    container_from,
    mount_messages,
    mounts_from,
    process_from,
    snapshot_from,
)
from perdure.engine.containerd.rpc import (
    RUNTIME_SECONDS,
    UNPACK_SECONDS,
    USAGE_SECONDS,
    Connection,
    message_class,
    packed,
)

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RUNC_OPTIONS_TYPE = "containerd.runc.v1.Options"

_CONTAINERS = "containerd.services.containers.v1.Containers"
_TASKS = "containerd.services.tasks.v1.Tasks"
_SNAPSHOTS = "containerd.services.snapshots.v1.Snapshots"
_IMAGES = "containerd.services.images.v1.Images"
_CONTENT = "containerd.services.content.v1.Content"
_DIFF = "containerd.services.diff.v1.Diff"
_LEASES = "containerd.services.leases.v1.Leases"
_EVENTS = "containerd.services.events.v1.Events"
_VERSION = "containerd.services.version.v1.Version"


def label_filter(label: str, value: str) -> str:
    """A filter for things with this label (pkg/filters)."""
    return f'labels."{label}"=={_quoted(value)}'


def other_label_filter(label: str, value: str) -> str:
    """A filter for all the others, those without the label among them (pkg/filters: `!=` holds for what is not there)."""
    return f'labels."{label}"!={_quoted(value)}'


def _quoted(value: str) -> str:
    """Strings are quoted as in Go, which for what Kubernetes allows in names and uids means that quotes and backslashes
    are escaped."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class Containers:
    def __init__(self, connection: Connection) -> None:
        self._rpc = connection

    async def get(self, container: str) -> ContainerRecord:
        return container_from((await self._rpc.unary(_CONTAINERS, "Get", id=container)).container)

    async def list(self, *filters: str) -> tuple[ContainerRecord, ...]:
        answer = await self._rpc.unary(_CONTAINERS, "List", filters=filters)
        return tuple(container_from(message) for message in answer.containers)

    def _message(self, record: ContainerRecord, runc_root: str | None) -> Any:
        runtime = message_class("containerd.services.containers.v1.Container.Runtime")
        return message_class("containerd.services.containers.v1.Container")(
            id=record.id,
            labels=record.labels,
            image=record.image,
            runtime=runtime(name=record.runtime, options=runc_options(runc_root)),
            spec=packed(SPEC_TYPE, record.spec),
            snapshotter=record.snapshotter,
            snapshot_key=record.snapshot_key,
        )

    async def create(self, record: ContainerRecord, runc_root: str | None) -> None:
        await self._rpc.unary(_CONTAINERS, "Create", container=self._message(record, runc_root))

    async def replace(self, record: ContainerRecord, runc_root: str | None) -> None:
        """Labels, spec, image and snapshot key; an empty mask means all that can change (metadata/containers.go)."""
        await self._rpc.unary(_CONTAINERS, "Update", container=self._message(record, runc_root))

    async def delete(self, container: str) -> None:
        await self._rpc.unary(_CONTAINERS, "Delete", id=container)


def runc_options(runc_root: str | None) -> Any:
    """Options for the shim, as an Any; None for its defaults."""
    if runc_root is None:
        return None
    options = message_class("containerd.runc.v1.Options")(root=runc_root)
    return packed(RUNC_OPTIONS_TYPE, options.SerializeToString())


class Tasks:
    def __init__(self, connection: Connection) -> None:
        self._rpc = connection

    async def get(self, container: str) -> Process:
        answer = await self._rpc.unary(_TASKS, "Get", container_id=container)
        return process_from(answer.process)

    async def list(self) -> tuple[Process, ...]:
        answer = await self._rpc.unary(_TASKS, "List", deadline=RUNTIME_SECONDS)
        return tuple(process_from(message) for message in answer.tasks)

    async def create(self, container: str, rootfs: Sequence[Mount], output: str, runc_root: str | None) -> int:
        """Make the container and its init process, which waits for `start`; its pid. `output`: a `file://` URI."""
        answer = await self._rpc.unary(
            _TASKS,
            "Create",
            deadline=RUNTIME_SECONDS,
            container_id=container,
            rootfs=mount_messages(rootfs),
            stdout=output,
            stderr=output,
            options=runc_options(runc_root),
        )
        return int(answer.pid)

    async def start(self, container: str) -> int:
        answer = await self._rpc.unary(_TASKS, "Start", deadline=RUNTIME_SECONDS, container_id=container)
        return int(answer.pid)

    async def kill(self, container: str, signal: int, *, everything: bool) -> None:
        await self._rpc.unary(
            _TASKS, "Kill", deadline=RUNTIME_SECONDS, container_id=container, signal=signal, all=everything
        )

    async def wait(self, container: str, deadline: float) -> None:
        await self._rpc.unary(_TASKS, "Wait", deadline=deadline, container_id=container)

    async def delete(self, container: str) -> None:
        await self._rpc.unary(_TASKS, "Delete", deadline=RUNTIME_SECONDS, container_id=container)

    async def exec(self, container: str, exec_id: str, process: bytes, output: str) -> None:
        """Prepare another process in a running container. `process`: OCI JSON; `output`: path of a FIFO."""
        await self._rpc.unary(
            _TASKS,
            "Exec",
            deadline=RUNTIME_SECONDS,
            container_id=container,
            exec_id=exec_id,
            stdout=output,
            stderr=output,
            spec=packed(PROCESS_TYPE, process),
        )

    async def start_exec(self, container: str, exec_id: str) -> int:
        """Its pid, as the engine's host counts them."""
        answer = await self._rpc.unary(
            _TASKS, "Start", deadline=RUNTIME_SECONDS, container_id=container, exec_id=exec_id
        )
        return int(answer.pid)

    async def wait_exec(self, container: str, exec_id: str, deadline: float) -> int:
        """Its exit code."""
        answer = await self._rpc.unary(_TASKS, "Wait", deadline=deadline, container_id=container, exec_id=exec_id)
        return int(answer.exit_status)

    async def get_exec(self, container: str, exec_id: str) -> Process:
        answer = await self._rpc.unary(_TASKS, "Get", container_id=container, exec_id=exec_id)
        return process_from(answer.process)

    async def delete_exec(self, container: str, exec_id: str) -> None:
        """Only once it has ended. The shim waits up to 10 s for those who still hold its output."""
        await self._rpc.unary(
            _TASKS, "DeleteProcess", deadline=RUNTIME_SECONDS, container_id=container, exec_id=exec_id
        )


class Snapshots:
    """One snapshotter's snapshots."""

    def __init__(self, connection: Connection, snapshotter: str) -> None:
        self._rpc = connection
        self._name = snapshotter

    async def stat(self, key: str) -> SnapshotInfo:
        answer = await self._rpc.unary(_SNAPSHOTS, "Stat", snapshotter=self._name, key=key)
        return snapshot_from(answer.info)

    async def list(self, *filters: str) -> tuple[SnapshotInfo, ...]:
        found: list[SnapshotInfo] = []
        async for answer in self._rpc.stream(_SNAPSHOTS, "List", snapshotter=self._name, filters=filters):
            found.extend(snapshot_from(message) for message in answer.info)
        return tuple(found)

    async def prepare(
        self, key: str, parent: str, labels: Mapping[str, str], lease: str | None = None
    ) -> tuple[Mount, ...]:
        answer = await self._rpc.unary(
            _SNAPSHOTS, "Prepare", lease=lease, snapshotter=self._name, key=key, parent=parent, labels=labels
        )
        return mounts_from(answer.mounts)

    async def mounts(self, key: str) -> tuple[Mount, ...]:
        answer = await self._rpc.unary(_SNAPSHOTS, "Mounts", snapshotter=self._name, key=key)
        return mounts_from(answer.mounts)

    async def commit(self, name: str, key: str, labels: Mapping[str, str], lease: str | None = None) -> None:
        await self._rpc.unary(
            _SNAPSHOTS, "Commit", lease=lease, snapshotter=self._name, name=name, key=key, labels=labels
        )

    async def usage(self, key: str) -> int:
        """Bytes of a snapshot without its parents; of an active one by a walk over its files."""
        answer = await self._rpc.unary(_SNAPSHOTS, "Usage", deadline=USAGE_SECONDS, snapshotter=self._name, key=key)
        return int(answer.size)

    async def remove(self, key: str) -> None:
        await self._rpc.unary(_SNAPSHOTS, "Remove", snapshotter=self._name, key=key)

    async def replace_labels(self, key: str, labels: Mapping[str, str]) -> None:
        """Set the labels as a whole: a label that is not among them is taken off."""
        info = message_class("containerd.services.snapshots.v1.Info")(name=key, labels=labels)
        mask = message_class("google.protobuf.FieldMask")(paths=["labels"])
        await self._rpc.unary(_SNAPSHOTS, "Update", snapshotter=self._name, info=info, update_mask=mask)


class Content:
    def __init__(self, connection: Connection) -> None:
        self._rpc = connection

    async def read(self, digest: str, limit: int) -> bytes:
        """A blob of at most `limit` bytes. Raises `RpcFailed` for a larger one."""
        data = bytearray()
        async for answer in self._rpc.stream(_CONTENT, "Read", digest=digest):
            data += answer.data
            if len(data) > limit:
                why = f"{digest} is larger than {limit} bytes"
                raise RpcFailed("Content.Read", grpc.StatusCode.OUT_OF_RANGE, why)
        return bytes(data)

    async def add_label(self, digest: str, label: str, value: str) -> None:
        info = message_class("containerd.services.content.v1.Info")(digest=digest, labels={label: value})
        mask = message_class("google.protobuf.FieldMask")(paths=[f"labels.{label}"])
        await self._rpc.unary(_CONTENT, "Update", info=info, update_mask=mask)


class Services:
    """Every service that the engine uses, over one connection."""

    def __init__(self, connection: Connection, snapshotter: str) -> None:
        self._rpc = connection
        self.snapshotter = snapshotter
        self.containers = Containers(connection)
        self.tasks = Tasks(connection)
        self.snapshots = Snapshots(connection, snapshotter)
        self.content = Content(connection)

    async def version(self) -> str:
        return str((await self._rpc.unary(_VERSION, "Version")).version)

    async def image_target(self, name: str) -> Descriptor:
        """What an image's name points to."""
        target = (await self._rpc.unary(_IMAGES, "Get", name=name)).image.target
        return Descriptor(target.media_type, target.digest, target.size)

    async def apply_layer(self, layer: Descriptor, mounts: Sequence[Mount], lease: str) -> str:
        """Unpack a layer's blob into mounts; the digest of the uncompressed tar."""
        descriptor = message_class("containerd.types.Descriptor")(
            media_type=layer.media_type, digest=layer.digest, size=layer.size
        )
        answer = await self._rpc.unary(
            _DIFF, "Apply", deadline=UNPACK_SECONDS, lease=lease, diff=descriptor, mounts=mount_messages(mounts)
        )
        return str(answer.applied.digest)

    async def create_lease(self, lease: str, labels: Mapping[str, str]) -> None:
        await self._rpc.unary(_LEASES, "Create", id=lease, labels=labels)

    async def lease_snapshot(self, lease: str, key: str) -> None:
        """Have a lease hold a snapshot, whether that exists yet or not."""
        resource = message_class("containerd.services.leases.v1.Resource")(id=key, type=f"snapshots/{self.snapshotter}")
        await self._rpc.unary(_LEASES, "AddResource", id=lease, resource=resource)

    async def delete_lease(self, lease: str) -> None:
        await self._rpc.unary(_LEASES, "Delete", id=lease)

    async def subscribe(self, *filters: str) -> AsyncIterator[Event]:
        """Events from now on, without end; raises when the stream breaks."""
        task_event = message_class("containerd.events.TaskOOM")
        async for envelope in self._rpc.stream(_EVENTS, "Subscribe", deadline=None, filters=filters):
            payload = task_event()
            payload.ParseFromString(envelope.event.value)
            yield Event(envelope.topic, payload.container_id)


def expiry_label(seconds: float) -> dict[str, str]:
    """A lease's label that lets the collector take it after `seconds` (containerd docs/garbage-collection.md)."""
    return {"containerd.io/gc.expire": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))}
