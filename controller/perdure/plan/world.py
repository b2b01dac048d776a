"""What the planner is told: facts seen at the engine, the sandbox and the ledger, and the node's own record.

Adapters fill these in, the planner reads them, nobody changes them. Times are seconds since the epoch (UTC).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from perdure.api.conditions import Reason
from perdure.api.names import (
    ChainId,
    ContainerId,
    Kind,
    NamespaceUid,
    NodeId,
    OperationId,
    RuntimeRef,
    SnapshotKey,
    Uid,
)
from perdure.api.network import NetworkMode, NetworkPolicy
from perdure.api.phases import Phase
from perdure.api.request import RequestId
from perdure.api.runtime import Runtime
from perdure.plan.certainty import Certain, Unknown
from perdure.plan.health import NO_HEALTH, NOTHING_PROBED, Health, ProbeFacts
from perdure.plan.uptime import Uptime

# ---------------------------------------------------------------------------------------------- seen at the engine


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image that is on the node, unpacked, for this platform. Source: OCI image-spec config.md."""

    name: str
    digest: str
    chain_id: ChainId
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    stop_signal: str = ""


@dataclass(frozen=True, slots=True)
class SnapshotFacts:
    """An active snapshot of ours; everything but `key` and `chain_id` was read from its labels."""

    key: SnapshotKey
    n: int
    chain_id: ChainId
    """The parent that it really stands on."""
    image: str
    image_digest: str
    gate: int | None
    """Sequence of the archive whose restore was not finished, or None."""


@dataclass(frozen=True, slots=True)
class ContainerFacts:
    id: ContainerId
    snapshot_key: SnapshotKey
    spec_hash: str


class TaskState(StrEnum):
    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Exit:
    """How a main process ended. `code` None: the engine lost it."""

    code: int | None
    at: float
    oom: bool = False
    unhealthy: bool = False
    """We ended it, because a probe failed."""


@dataclass(frozen=True, slots=True)
class TaskFacts:
    state: TaskState
    pid: int
    exit: Exit | None = None
    ooms: int = 0
    """How many of its processes the kernel is known to have killed for want of memory."""


OWN_NAMESPACE = NetworkPolicy()
"""Nobody but runtimes of the same namespace may connect."""


@dataclass(frozen=True, slots=True)
class HostPort:
    """One port of a container and the port of its node that leads there. `protocol`: TCP or UDP."""

    name: str
    protocol: str
    container_port: int
    host_port: int


@dataclass(frozen=True, slots=True)
class SandboxFacts:
    """The network namespace that a runtime's container joins, and what is in it."""

    netns: str
    mode: NetworkMode = NetworkMode.NONE
    attached: bool = True
    """The network is in it. Loopback alone needs nothing more than the namespace."""
    addresses: tuple[str, ...] = ()
    """Of the container's interface, IPv4 first."""
    ports: tuple[HostPort, ...] = ()
    """What the node leads into it."""
    policy: NetworkPolicy = OWN_NAMESPACE
    """Who else may connect to it."""
    damage: str = ""
    """What was found missing of it since it was attached: it is repaired in place."""


# ---------------------------------------------------------------------------------------------- known to the ledger


@dataclass(frozen=True, slots=True)
class ArchiveFacts:
    """One verified archive, as the catalogue has it. `sequence` orders archives; clocks do not."""

    sequence: int
    kind: Kind
    namespace: str
    name: str
    uid: Uid
    store: str
    node_id: NodeId | None
    """The only node that can read it, for a local store."""
    snapshot_key: SnapshotKey
    image: str
    image_digest: str
    chain_id: ChainId
    sha256: str
    bytes: int
    entries: int
    uncompressed_bytes: int
    empty: bool
    retain: bool = False
    object_name: str = ""


@dataclass(frozen=True, slots=True)
class Bound:
    """Where the controller bound a life, and the namespace as it read it then: what labels say is held against this."""

    node_id: NodeId
    namespace_uid: NamespaceUid


@dataclass(frozen=True, slots=True)
class LedgerFacts:
    """What the ledger says about one life (uid) and its identity."""

    bound: Bound | None = None
    """None: the controller bound no such life."""

    data_seen: SnapshotKey | None = None
    """A snapshot that this uid is known to have had."""
    released: bool = False
    force_released: bool = False
    """A person gave the object up: what is here of it is an orphan."""
    latest: ArchiveFacts | None = None
    """What `restore.policy: Latest` means: the newest verified, non-empty archive of the identity."""
    quarantined: int | None = None
    """Sequence of the newest archive of the identity that turned out to be bad."""
    named: ArchiveFacts | None = None
    """The archive that `restore.archive` names, in this namespace."""
    unarchived: tuple[Uid, ...] = ()
    """Other lives of the identity whose data is known and neither archived nor purged."""
    given_up: tuple[Uid, ...] = ()
    """Those of the identity that were released by force: what of theirs is not archived never will be."""
    put_away: ArchiveFacts | None = None
    """What the newest data of this uid was archived as before it was removed from the node, or before its removal was
    announced: the data is in it if the snapshot is gone."""
    unfinished: tuple[OperationId, ...] = ()
    """Operations of this uid that were begun and have no end."""
    purgeable: tuple[int, ...] = ()
    """Sequences of the identity's archives (any state but purged) that a purge of this life removes."""
    spared: tuple[int, ...] = ()
    """Those that it leaves: marked to be retained, or of another life that is not known to be an earlier one."""


# ---------------------------------------------------------------------------------------------- the node's own record


class Op(StrEnum):
    START = "start"
    STOP = "stop"
    RESTART = "restart"
    CLEANUP = "cleanup_container"
    RESTORE = "restore"
    PRESERVE = "preserve"
    PURGE = "purge"
    ADOPT = "adopt"
    DISPOSE = "dispose"


class Source(StrEnum):
    """Who wanted it."""

    KUBECTL = "kubectl"
    AUTO_RECONCILE = "auto_reconcile"
    NODE_EVENT = "node_event"
    AUTO_TTL = "auto_ttl"
    ADMIN_CLI = "admin_cli"
    """A request by annotation, which is what the command line writes."""


class Outcome(StrEnum):
    SUCCESS = "success"
    FAILURE = "failure"
    SUPERSEDED = "superseded"
    """Given up because something else was wanted before it was done."""


class Code(StrEnum):
    """Why an operation did nothing, for programs. What failed has the `Reason` of its failure instead."""

    NONE = ""
    CONFLICT = "conflict"
    REPLAY_NO_OP = "replay_no_op"
    INVALID_REQUEST = "invalid_request"
    SKIPPED_BUSY = "skipped_busy"
    """Somebody else was at work on it: it is looked at again."""


@dataclass(frozen=True, slots=True)
class OpenOperation:
    """The one operation that is under way."""

    id: OperationId
    op: Op
    source: Source
    started_at: float
    before: Phase | None = None
    committed: bool = True
    """Its intent row is where it has to be. False: journalled, and not known to be in the ledger yet."""
    request: RequestId | None = None
    """The request by annotation that its end answers."""
    correlation: str = ""
    """Of what else the same cause brings about."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """One writable layer, whose life is ours."""

    key: SnapshotKey
    n: int
    image: str
    image_digest: str
    chain_id: ChainId
    prepared: bool = False
    """The engine confirmed it once. Not there and not prepared = never made; not there and prepared = missing."""
    gate: ArchiveFacts | None = None
    """Restore this before any task may start."""
    restored_from: str | None = None
    ever_started: bool = False
    """Journalled before the first task starts: until then nothing of a container's can be in it."""
    archived: ArchiveFacts | None = None
    """A verified archive of exactly this snapshot as it is now; cleared (and journalled) before any later start."""
    removal_announced: bool = False
    """The ledger was told, or may have been, that this snapshot is about to be removed: before anything is started on
    it, that is taken back there."""


@dataclass(frozen=True, slots=True)
class PutAway:
    """Where the data is since a clean-up removed its snapshot: in exactly this archive."""

    archive: ArchiveFacts
    source: Source


@dataclass(frozen=True, slots=True)
class AnsweredRequest:
    """A request by annotation that is dealt with: seen again, it is not done again."""

    id: RequestId
    outcome: Outcome
    code: Code
    message: str


@dataclass(frozen=True, slots=True)
class Halted:
    """The main process ended and the restart policy leaves it so."""

    reason: Reason
    spec_hash: str
    """A change of what is run lifts it."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """A main process that had not ended a moment after the stop signal was sent to it."""

    pid: int
    at: Uptime
    """When the signal was sent: SIGKILL follows when the grace period since then is over, whoever has to see to it."""


@dataclass(frozen=True, slots=True)
class Record:
    """Everything about one life that must survive the agent; one line of the node journal."""

    ref: RuntimeRef
    newest_n: int = 0
    workspace: Workspace | None = None
    operations: int = 0
    """How many were begun: the next one's id is made from it."""
    numbered_from: float = 0.0
    """When the first of them began: ids stay apart from those that were given before the journal was lost."""
    operation: OpenOperation | None = None
    phase: Phase | None = None
    """After the last finished operation."""
    started_at: float | None = None
    stopped_at: float | None = None
    stopped_up: Uptime | None = None
    """When that was recorded, by the other clock."""
    running: bool = False
    """A task was started and its end has not been recorded yet."""
    restarts: int = 0
    failures_in_row: int = 0
    next_start_at: float | None = None
    last_exit: Exit | None = None
    halted: Halted | None = None
    host_ports: tuple[tuple[str, int], ...] = ()
    """Ports of the node by name that were published once: from then on they never change silently."""
    deletion_seen: bool = False
    """The object was seen Terminating: from then on its absence means that it was deleted."""
    force_released: bool = False
    released: bool = False
    """The ledger has it that this life is over: data archived, purged, or never there."""
    put_away: PutAway | None = None
    """Set when a clean-up removed the snapshot, until the data is restored; counts only without a workspace."""
    last_request: AnsweredRequest | None = None
    health: Health = NO_HEALTH
    stop_asked: StopAsked | None = None
    """Of the task that is there; gone with its end."""
    health_events: int = 0
    """How many were told: the next one's id is made from it."""


# ---------------------------------------------------------------------------------------------- desired


@dataclass(frozen=True, slots=True)
class Wanted:
    """The object is there and is to live."""

    runtime: Runtime


@dataclass(frozen=True, slots=True)
class Terminating:
    """The object is there and is being deleted: only `deletionPolicy` and force-release are read."""

    runtime: Runtime


@dataclass(frozen=True, slots=True)
class Gone:
    """The API server said 404, or showed another uid under the name, when asked for exactly this object."""

    confirmed: bool = False
    """It was said twice, with the grace period in between."""


@dataclass(frozen=True, slots=True)
class Unseen:
    """Not in the cache, and nobody proved that it is gone."""

    why: str


Desired = Wanted | Terminating | Gone | Unseen


# ---------------------------------------------------------------------------------------------- all of it


@dataclass(frozen=True, slots=True)
class Failure:
    """The last attempt at this runtime failed. Kept in memory until a success or a new generation."""

    reason: Reason
    message: str
    step: str
    user_error: bool
    """Only an edit of the spec (or of what it names) helps."""
    blocks_data: bool
    """Only a person's decision about the data helps."""
    retry_at: float
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Freeze:
    """Nothing destructive is done on this node at all until a person has looked."""

    reason: Reason
    message: str


_NOT_LOOKED = Unknown("nobody looked")


@dataclass(frozen=True, slots=True)
class Observed:
    """One look at the node. The default of each is that nobody looked."""

    container: Certain[ContainerFacts] = _NOT_LOOKED
    task: Certain[TaskFacts] = _NOT_LOOKED
    snapshots: Certain[tuple[SnapshotFacts, ...]] = _NOT_LOOKED
    """With a workspace in the record: that one snapshot or none. Without: every snapshot whose label has the uid."""
    sandbox: Certain[SandboxFacts] = _NOT_LOOKED
    image: Certain[ImageFacts] = _NOT_LOOKED
    """The image that the workspace stands on (without one: that the spec names); looked up only if no task runs."""
    wanted_image: Certain[ImageFacts] = _NOT_LOOKED
    """The image that the spec names, looked up only if the workspace stands on one of another name."""
    ledger: Certain[LedgerFacts] = _NOT_LOOKED
    """Asked only when a decision about data is due."""
    probes: ProbeFacts = NOTHING_PROBED


@dataclass(frozen=True, slots=True)
class World:
    """The planner's whole input, but for `now`."""

    ref: RuntimeRef
    desired: Desired
    observed: Observed
    record: Record
    failure: Failure | None = None
    freeze: Freeze | None = None
    uptime: Uptime | None = None
    """None: not known, as after another boot."""
    recorded: bool = True
    """False: this node's journal does not know the life, and `record` is blank: its labels alone say it is ours."""
