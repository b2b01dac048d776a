"""The container engine: images, workspaces (snapshots whose life is ours), containers, tasks, events."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from perdure.api.names import (
    ContainerId,
    RuntimeRef,
    SnapshotKey,
    Uid,
)
from perdure.api.runtime import PullPolicy, RuntimeSpec
from perdure.plan.certainty import Certain
from perdure.plan.world import (
    ContainerFacts,
    ImageFacts,
    SnapshotFacts,
    TaskFacts,
    Workspace,
)

BeforeStart = Callable[[], Awaitable[object]]
"""What must be in place before a program may run: its network."""


async def nothing_more() -> None:
    """For a program that needs no more than its container."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    name: str
    version: str


@dataclass(frozen=True, slots=True)
class EngineView:
    """One look at one runtime."""

    container: Certain[ContainerFacts]
    task: Certain[TaskFacts]
    snapshots: Certain[tuple[SnapshotFacts, ...]]


@dataclass(frozen=True, slots=True)
class Owned:
    """Something of this installation found on the engine, with whose it is."""

    ref: RuntimeRef
    snapshots: tuple[SnapshotFacts, ...]
    container: ContainerFacts | None
    task: TaskFacts | None


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """A task of ours changed; what it is now must be observed. `oom` events come before the exit they cause."""

    uid: Uid
    topic: str


@dataclass(frozen=True, slots=True)
class ResolvedEnv:
    """Environment variables with their values in it: never logged, never hashed into names, never in a status."""

    values: tuple[tuple[str, str], ...]

    def __repr__(self) -> str:
        return f"ResolvedEnv({len(self.values)} values)"


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """All that a container is made from."""

    ref: RuntimeRef
    id: ContainerId
    key: SnapshotKey
    image: ImageFacts
    spec: RuntimeSpec
    spec_hash: str
    env: ResolvedEnv
    netns: str
    restricted: bool
    """The namespace enforces Pod Security `restricted`: uid 0 is refused, all capabilities are dropped."""


@dataclass(frozen=True, slots=True)
class Execution:
    """How a command in a container ended."""

    code: int | None
    """None: its time was up, and it was killed."""
    output: str = ""
    """The beginning of what it printed, both streams; values of secrets are taken out."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A stopped workspace's writable layer on this node's disk: overlay's upperdir, with no overlay mounted on it."""

    key: SnapshotKey
    upper: Path
    staging_root: Path
    """A folder of this workspace alone, mode 0700, on the same file system and outside the snapshotter's own folders. It
    goes with the workspace: whatever a killed restore left in it needs no other broom."""


class Engine(Protocol):
    """A container engine. Raises `EngineUnavailable` or `EngineRefused`; the observing methods never raise those."""

    async def info(self) -> EngineInfo: ...

    async def observe(self, ref: RuntimeRef, key: SnapshotKey | None) -> EngineView:
        """Container, task and snapshots of one runtime. With `key`: that snapshot only; without: all of its uid."""

    async def inventory(self) -> Certain[tuple[Owned, ...]]:
        """Everything of this installation, by label; foreign things are not in it."""

    async def strangers(self) -> Certain[tuple[str, ...]]:
        """What is in our part of the engine (containers, and snapshots that can be written) without the label of this
        installation, by kind and name. It is reported, and never touched."""

    async def image(self, name: str) -> Certain[ImageFacts]:
        """The image, if it is on the node and unpacked (or can be unpacked without a registry)."""

    async def ensure_image(self, name: str, policy: PullPolicy) -> ImageFacts: ...

    async def prepare_workspace(self, ref: RuntimeRef, workspace: Workspace) -> None:
        """Never-expiring lease, then the active snapshot with its labels (gc.root and the gate among them) in the one
        request. Already there on the same chain: nothing. On another chain: `EngineRefused(SnapshotConflict)`."""

    async def open_gate(self, key: SnapshotKey) -> None:
        """Take the restore-pending label off. Not there: nothing."""

    async def usage(self, key: SnapshotKey) -> int:
        """Bytes in the writable layer."""

    async def layer(self, key: SnapshotKey) -> Layer:
        """Where the layer is. Refuses (`EngineRefused`) while any task runs on the snapshot."""

    async def create_container(self, plan: ContainerPlan) -> None:
        """Make the record, or bring an existing one that has no task to this plan."""

    async def start_task(
        self, container: ContainerId, key: SnapshotKey, before_start: BeforeStart = nothing_more
    ) -> TaskFacts:
        """Create and start the main process. Refuses while another task is on the snapshot or its gate is shut.

        `before_start` runs while the task is made, and must be done before its program may run; if it raises, the task
        is taken away again and the error is the caller's. It is not called where a task is there already."""

    async def signal_task(self, container: ContainerId, signal: str) -> None:
        """Send a signal (`SIGTERM`) to the main process (SIGKILL: to all). No task or ended: nothing."""

    async def wait_task(self, container: ContainerId, deadline: float) -> bool:
        """Wait at most `deadline` seconds for the end of the main process; whether it ended (or there is none)."""

    async def delete_task(self, container: ContainerId) -> None:
        """Delete an ended task (a running one is refused). None there: nothing."""

    async def execute(
        self, container: ContainerId, command: Sequence[str], seconds: float, secrets: Set[str] = frozenset()
    ) -> Execution:
        """Run a command beside the main process, as its user, with its environment and limits. When the time is up it
        is killed, and so are its children. A command that cannot be started has a code above 125, as in a shell.

        `secrets`: names of environment variables whose values must not be in the output. Raises `EngineRefused` where
        no main process runs."""

    async def remove_container(self, container: ContainerId) -> None:
        """Delete the record; refused while it has a task. None there: nothing."""

    async def remove_workspace(self, key: SnapshotKey) -> None:
        """Remove snapshot and lease. The caller has the ground for it. Refused while a container refers to it."""

    async def forget(self, ref: RuntimeRef) -> None:
        """Remove what is kept beside the data of a life that is over: its containers' logs. Nothing there: nothing."""

    def events(self) -> AsyncIterator[EngineEvent]:
        """Task events of this installation, until the stream breaks (then it ends: subscribe again, then list)."""
