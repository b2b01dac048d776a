"""The ports that the loop drives, and the errors that adapters may raise through them.

An adapter implements one Protocol and passes its contract tests; so does the fake that the crash matrix uses. Every
method has its own deadline inside the adapter. Every method may be repeated: after a crash nobody knows whether it ran.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from perdure.api.conditions import Reason
from perdure.api.names import (
    ContainerId,
    Identity,
    InstallationId,
    Kind,
    NamespaceUid,
    NodeId,
    NodeName,
    OperationId,
    RuntimeRef,
    SnapshotKey,
    Uid,
)
from perdure.api.node import NodeStatus
from perdure.api.phases import Phase
from perdure.api.runtime import PullPolicy, Restore, Runtime, RuntimeSpec, RuntimeStatus
from perdure.plan.certainty import Certain
from perdure.plan.world import (
    ArchiveFacts,
    ContainerFacts,
    ImageFacts,
    LedgerFacts,
    Op,
    Outcome,
    Record,
    SandboxFacts,
    SnapshotFacts,
    Source,
    TaskFacts,
    Workspace,
)

# ---------------------------------------------------------------------------------------------- errors


class PortError(Exception):
    """Something outside did not do what was asked. The message says what was being done, to what, and what to do next.

    `reason` is what the condition shows. `user_error`: only an edit of the spec or of what it names helps.
    `blocks_data`: only a person's decision about data helps. Otherwise it is tried again.
    """

    def __init__(self, message: str, *, reason: Reason, user_error: bool = False, blocks_data: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.user_error = user_error
        self.blocks_data = blocks_data


class EngineUnavailable(PortError):
    """The engine did not answer (or answered that it has no such service, which is what a broken one says)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.ENGINE_UNAVAILABLE)


class EngineRefused(PortError):
    """The engine answered, and the answer is no; `reason` says which no."""


class SandboxFailed(PortError):
    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.NETWORK_FAILED)


class StoreError(PortError):
    """A store cannot be written or read (`StoreFull`, `StoreUnavailable`), or what was written is not what was read."""


class ArchiveCorrupt(PortError):
    """An archive is not what the catalogue says. It is quarantined: never deleted, never restored."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.ARCHIVE_CORRUPT, blocks_data=True)


class LedgerUnavailable(PortError):
    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.LEDGER_UNAVAILABLE)


class StaleFence(PortError):
    """Somebody took the lease over: whoever gets this has lost, and observes again before anything else."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.LEDGER_UNAVAILABLE)


class ApiUnavailable(PortError):
    """The API server did not answer, or answered 429 or 5xx."""

    def __init__(self, message: str, reason: Reason = Reason.IN_PROGRESS) -> None:
        super().__init__(message, reason=reason)


class SourceError(PortError):
    """A Secret, ConfigMap or namespace that the spec names is missing or may not be read."""


class StatusConflict(PortError):
    """The object changed since it was read; the newer version will come through the watch."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.IN_PROGRESS)


# ---------------------------------------------------------------------------------------------- engine


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

    async def start_task(self, container: ContainerId, key: SnapshotKey) -> TaskFacts:
        """Create and start the main process. Refuses while another task is on the snapshot or its gate is shut."""

    async def signal_task(self, container: ContainerId, signal: str) -> None:
        """Send a signal (`SIGTERM`) to the main process (SIGKILL: to all). No task or ended: nothing."""

    async def wait_task(self, container: ContainerId, deadline: float) -> bool:
        """Wait at most `deadline` seconds for the end of the main process; whether it ended (or there is none)."""

    async def delete_task(self, container: ContainerId) -> None:
        """Delete an ended task (a running one is refused). None there: nothing."""

    async def remove_container(self, container: ContainerId) -> None:
        """Delete the record; refused while it has a task. None there: nothing."""

    async def remove_workspace(self, key: SnapshotKey) -> None:
        """Remove snapshot and lease. The caller has the ground for it. Refused while a container refers to it."""

    async def forget(self, ref: RuntimeRef) -> None:
        """Remove what is kept beside the data of a life that is over: its containers' logs. Nothing there: nothing."""

    def events(self) -> AsyncIterator[EngineEvent]:
        """Task events of this installation, until the stream breaks (then it ends: subscribe again, then list)."""


# ---------------------------------------------------------------------------------------------- sandbox


class Sandbox(Protocol):
    """Who gives a runtime its network namespace and address, and says when they go. Raises `SandboxFailed`."""

    async def observe(self, ref: RuntimeRef) -> Certain[SandboxFacts]: ...

    async def create(self, ref: RuntimeRef, spec: RuntimeSpec) -> SandboxFacts: ...

    async def remove(self, ref: RuntimeRef) -> None: ...

    async def inventory(self) -> Sequence[Uid]: ...


# ---------------------------------------------------------------------------------------------- archives


@dataclass(frozen=True, slots=True)
class ArchiveRequest:
    """What an archive is to be called and what its manifest says of where it came from."""

    installation: InstallationId
    ref: RuntimeRef
    sequence: int
    node_id: NodeId
    workspace: Workspace


class Archives(Protocol):
    """Stores of archives. Raises `StoreError` or `ArchiveCorrupt`."""

    async def preflight(self, layer_bytes: int | None) -> None:
        """The store can be written and has room for `layer_bytes` (None: for a little)."""

    async def export(self, request: ArchiveRequest, layer: Layer) -> ArchiveFacts:
        """Write, fsync, read back and verify against the manifest and against an independent walk of the layer. Only
        then does it return. An archive of the same sequence that is complete and verifies is returned as it is."""

    async def restore(self, archive: ArchiveFacts, layer: Layer) -> None:
        """Verify the hash that the catalogue knows, extract in a jail into staging, fsync, rename into place."""

    async def verify(self, archive: ArchiveFacts) -> None: ...

    async def delete(self, archive: ArchiveFacts) -> None:
        """Remove the manifest, then the bytes, also of what was set aside under this sequence. Not there: nothing."""

    async def list(self, installation: InstallationId, identity_of: RuntimeRef) -> Sequence[int]:
        """Sequences of what the store holds under the name of this runtime, whatever its uid."""


# ---------------------------------------------------------------------------------------------- journal


@dataclass(frozen=True, slots=True)
class OperationStarted:
    """Intent row. The id is deterministic: written twice, it is one row."""

    id: OperationId
    ref: RuntimeRef
    op: Op
    source: Source
    at: float
    before: Phase | None
    image: str = ""


@dataclass(frozen=True, slots=True)
class OperationFinished:
    id: OperationId
    ref: RuntimeRef
    at: float
    outcome: Outcome
    after: Phase
    error_code: str = ""
    """The `Reason` of the failure."""
    message: str = ""
    snapshot_key: SnapshotKey | None = None
    image: str = ""
    """The image whose layers the snapshot stands on."""


OperationRow = OperationStarted | OperationFinished


@dataclass(frozen=True, slots=True)
class NodeMemory:
    """What the node remembers of the world outside, so that it notices when that world is another one."""

    installation: InstallationId | None = None
    ledger: str | None = None
    """The ledger's identity (a random id in the database)."""
    highest_fence: int = 0


class Journal(Protocol):
    """The node's own record: append-only, fsynced before a call returns. Raises `PortError(JournalFailed)`."""

    def records(self) -> Mapping[Uid, Record]: ...

    def record(self, uid: Uid) -> Record | None: ...

    def memory(self) -> NodeMemory: ...

    async def commit(
        self,
        *,
        put: Record | None = None,
        forget: Uid | None = None,
        rows: Sequence[OperationRow] = (),
        memory: NodeMemory | None = None,
    ) -> None:
        """All of it in one durable append: it is there entirely or not at all."""

    def unsent(self) -> Sequence[OperationRow]:
        """Rows that the ledger has not confirmed, oldest first."""

    async def sent(self, count: int) -> None:
        """The ledger confirmed the first `count` of `unsent()`."""


# ---------------------------------------------------------------------------------------------- ledger


@dataclass(frozen=True, slots=True)
class Lease:
    """Exclusion for one long or destructive operation. `fence` rises with each taking; the database refuses less."""

    key: str
    token: str
    fence: int
    expires_at: float
    """On this process's monotonic clock, reckoned from before the request was sent: never later than the database's."""


@dataclass(frozen=True, slots=True)
class LedgerIdentity:
    id: str
    highest_fence: int


@dataclass(frozen=True, slots=True)
class Binding:
    uid: Uid
    node_name: NodeName
    node_id: NodeId


class AgentLedger(Protocol):
    """What an agent needs of the ledger. Raises `LedgerUnavailable`, `StaleFence`."""

    async def identity(self) -> LedgerIdentity: ...

    async def facts(self, ref: RuntimeRef, restore: Restore) -> Certain[LedgerFacts]:
        """Never raises: what cannot be asked is `Unknown`."""

    async def apply(self, rows: Sequence[OperationRow], node: NodeName) -> None:
        """Write rows in order; one that is there already is left as it is. An `OperationFinished` also moves the
        runtime's row (state, snapshot, image) in the same statement, unless that row is newer."""

    async def acquire(self, key: str, ttl: float) -> Lease:
        """Take a lease, or take it over from an earlier process of the same node, with a higher fence.
        Raises `PortError(InProgress)` while somebody else holds it."""

    async def renew(self, lease: Lease, ttl: float) -> Lease:
        """Raises `StaleFence` when it is no longer ours."""

    async def release(self, lease: Lease) -> None: ...

    async def begin(self, row: OperationStarted, node: NodeName, lease: Lease) -> None:
        """The intent row, committed, under the lease's fence."""

    async def begin_archive(
        self, operation: OperationId, ref: RuntimeRef, workspace: Workspace, node: NodeId, lease: Lease
    ) -> int:
        """A row for an archive that is about to be written, and its sequence; the same again for the same operation."""

    async def finish_archive(self, archive: ArchiveFacts, lease: Lease) -> None:
        """The archive counts from now on."""

    async def archives(self, identity: Identity, node: NodeId | None) -> Sequence[ArchiveFacts]:
        """Verified archives of the identity (readable on `node`, if given), oldest first."""

    async def purgeable(self, identity: Identity) -> Sequence[ArchiveFacts]:
        """Archives of the identity in any state but purged, without those to be retained; wherever they are."""

    async def mark_purging(self, sequence: int, lease: Lease) -> None:
        """A person wants it gone; the agent of the node that holds it deletes it."""

    async def purging(self, node: NodeId) -> Sequence[ArchiveFacts]:
        """What other nodes' purges left for this one to delete."""

    async def mark_purged(self, sequence: int) -> None:
        """The bytes are gone: proven by listing the store. Only from `purging`."""

    async def quarantine(self, sequence: int, why: str) -> None:
        """Never restored, never deleted from now on."""

    async def finish(self, row: OperationFinished, node: NodeName, lease: Lease, *, release: bool) -> None:
        """Close a durable operation; with `release`, the life is over in the same statement."""


@dataclass(frozen=True, slots=True)
class BoundRow:
    """What the controller reads about one object."""

    binding: Binding | None
    released: bool
    latest_node: NodeId | None
    """The only node that can read what `Latest` (or the named archive) would restore; None = anywhere."""
    archive_known: bool
    """Whether there is anything to restore at all."""


class ControllerLedger(Protocol):
    """What the controller needs of the ledger. Raises `LedgerUnavailable`, `StaleFence`."""

    async def identity(self) -> LedgerIdentity: ...

    async def read(self, ref: RuntimeRef, restore: Restore) -> BoundRow: ...

    async def bind(self, ref: RuntimeRef, node: NodeName, node_id: NodeId, image: str) -> Binding:
        """The binding, decided once: if there is one already, that one is returned."""

    async def unpublished(self, limit: int) -> Sequence[ArchiveFacts]:
        """Archives (verified) that have no RuntimeArchive object yet."""

    async def published(self, sequence: int, object_name: str) -> None: ...

    async def purged(self, limit: int) -> Sequence[ArchiveFacts]:
        """Purged archives whose RuntimeArchive object has not been taken down yet."""

    async def unpublish(self, sequence: int) -> None: ...

    async def force_release(self, ref: RuntimeRef, reason: str) -> None:
        """Record that a person gave the object up; its data stays an orphan."""

    async def record_retained(self, namespace_uid: NamespaceUid, object_name: str, retain: bool) -> None:
        """Carry `retain` of a RuntimeArchive into the catalogue, where a Purge looks."""


# ---------------------------------------------------------------------------------------------- Kubernetes


class Objects(Protocol):
    """The cache of objects: latest version wins, whoever brought it."""

    def get(self, uid: Uid) -> Runtime | None:
        """None also for one that a watch or a list says is gone: whoever needs to know asks the API server."""

    def put(self, runtime: Runtime) -> None:
        """Take a version in, unless a newer one is there."""

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


class Published(StrEnum):
    """What became of a RuntimeArchive that was to be created."""

    DONE = "done"
    NAMESPACE_GONE = "namespace_gone"
    """The namespace is going or gone and takes no new objects: the ledger row alone is the record."""


class ControllerCluster(Protocol):
    """What the controller asks of the API server. Raises `ApiUnavailable`, `StatusConflict`."""

    async def get_namespace(self, name: str) -> NamespaceFacts | None: ...

    async def bind(self, runtime: Runtime, node: NodeName, node_id: NodeId, namespace_uid: NamespaceUid) -> Runtime:
        """Finalizer and the three binding labels in one merge patch, with resourceVersion."""

    async def release(self, runtime: Runtime) -> None:
        """Take our finalizer off, and only ours. Already off, or the object gone: nothing."""

    async def publish_archive(self, archive: ArchiveFacts) -> Published: ...

    async def unpublish_archive(self, archive: ArchiveFacts) -> None: ...

    async def write_status(self, runtime: Runtime, status: RuntimeStatus) -> Runtime: ...
