"""What containerd says, as values of ours, and the way from its messages to them.

Called by `services` alone for the conversions; the values travel through the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from perdure.engine.containerd.rpc import message_class


class ProcessStatus(IntEnum):
    """containerd.v1.types.Status."""

    UNKNOWN = 0
    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4
    PAUSING = 5


class SnapshotKind(IntEnum):
    """containerd.services.snapshots.v1.Kind."""

    UNKNOWN = 0
    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount of a snapshot, as mount(8) would be told it."""

    type: str
    source: str
    target: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob: what it is, its digest, its bytes."""

    media_type: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """What a task would be made from."""

    id: str
    labels: Mapping[str, str]
    image: str
    snapshotter: str
    snapshot_key: str
    spec: bytes
    """OCI runtime spec, JSON."""
    runtime: str = ""


@dataclass(frozen=True, slots=True)
class Process:
    """The main process of a task."""

    id: str
    pid: int
    status: ProcessStatus
    exit_status: int
    exited_at: float | None
    """Seconds since the epoch; None while it runs (1.6 sends Go's zero time, later versions nothing)."""


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot; `parent` is the snapshot that it stands on."""

    key: str
    parent: str
    kind: SnapshotKind
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to a task."""

    topic: str
    container_id: str


def _seconds(stamp: Any) -> float | None:
    """Unset is absent or zero; Go's zero time is the year 1."""
    return stamp.seconds + stamp.nanos / 1e9 if stamp.seconds > 0 else None


def mounts_from(messages: Any) -> tuple[Mount, ...]:
    return tuple(Mount(m.type, m.source, m.target, tuple(m.options)) for m in messages)


def mount_messages(mounts: Sequence[Mount]) -> list[Any]:
    make = message_class("containerd.types.Mount")
    return [make(type=m.type, source=m.source, target=m.target, options=m.options) for m in mounts]


def container_from(message: Any) -> ContainerRecord:
    return ContainerRecord(
        id=message.id,
        labels=dict(message.labels),
        image=message.image,
        snapshotter=message.snapshotter,
        snapshot_key=message.snapshot_key,
        spec=bytes(message.spec.value),
        runtime=message.runtime.name,
    )


def process_from(message: Any) -> Process:
    try:
        status = ProcessStatus(message.status)
    except ValueError:
        status = ProcessStatus.UNKNOWN
    return Process(
        id=message.container_id or message.id,
        pid=message.pid,
        status=status,
        exit_status=message.exit_status,
        exited_at=_seconds(message.exited_at),
    )


def snapshot_from(message: Any) -> SnapshotInfo:
    try:
        kind = SnapshotKind(message.kind)
    except ValueError:
        kind = SnapshotKind.UNKNOWN
    return SnapshotInfo(message.name, message.parent, kind, dict(message.labels))
