"""What can be done to a runtime, as values. The executor knows how; each step may be repeated without harm."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from perdure.api.conditions import Reason
from perdure.api.names import ContainerId, OperationId, SnapshotKey
from perdure.api.phases import Phase
from perdure.api.request import RequestId
from perdure.api.runtime import PullPolicy, RuntimeStatus
from perdure.plan.health import HealthEvent
from perdure.plan.world import (
    AnsweredRequest,
    ArchiveFacts,
    Code,
    Exit,
    Halted,
    HostPort,
    ImageFacts,
    Op,
    Outcome,
    PutAway,
    Record,
    SnapshotFacts,
    Source,
)


class Ground(StrEnum):
    """Why a snapshot may be removed."""

    ARCHIVED = "archived"
    """A verified archive of exactly this snapshot is in the catalogue."""
    PURGE = "purge"
    """A person asked for it."""
    NEVER_STARTED = "never_started"
    """No task ever ran on it: nothing in it is a container's, and what was being restored into it is still archived."""


@dataclass(frozen=True, slots=True)
class Begin:
    """Commit the intent row of an operation.

    `durable`: in the ledger itself and with its lease, not in the journal alone.
    """

    op: Op
    source: Source
    durable: bool
    before: Phase | None
    request: RequestId | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """Close the open operation."""

    outcome: Outcome
    after: Phase
    message: str = ""
    release: bool = False
    """Also say in the ledger that this life is over, which lets the controller take the finalizer off."""
    code: Code = Code.NONE


@dataclass(frozen=True, slots=True)
class Note:
    """Journal a new record, and what is told with it; nothing else happens."""

    record: Record
    why: str
    events: tuple[HealthEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer a request by annotation for which there is nothing to do: a whole operation in one row."""

    answer: AnsweredRequest


@dataclass(frozen=True, slots=True)
class RecordPutAway:
    """The snapshot is gone, and a verified archive holds exactly what was in it: say so in the ledger, then journal it."""

    put_away: PutAway


@dataclass(frozen=True, slots=True)
class CloseForgotten:
    """End operations in the ledger that the node's journal, which was lost, does not know any more."""

    operations: tuple[OperationId, ...]
    after: Phase


@dataclass(frozen=True, slots=True)
class KeepWorkspace:
    """Take back in the ledger that this snapshot is about to be removed: something is to be started on it."""

    key: SnapshotKey


@dataclass(frozen=True, slots=True)
class Dispose:
    """Drop the record of a life that has nothing on this node and no object any more: a whole operation in one row.

    Nothing is removed by it, and the life is not over by it: should the object come back, the ledger knows what it had.
    """

    message: str


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop the record of a life that is over."""


@dataclass(frozen=True, slots=True)
class EnsureImage:
    image: str
    policy: PullPolicy


@dataclass(frozen=True, slots=True)
class PrepareWorkspace:
    """Journal, lease, then snapshot, with the gate in place from the first instant if something is to be restored."""

    key: SnapshotKey
    n: int
    image: ImageFacts
    gate: ArchiveFacts | None


@dataclass(frozen=True, slots=True)
class AdoptSnapshot:
    """Take a pinned snapshot of this uid, whose record or container was lost, as the workspace."""

    snapshot: SnapshotFacts
    gate: ArchiveFacts | None
    removal_announced: bool
    """As far as anybody can tell now."""


@dataclass(frozen=True, slots=True)
class RestoreWorkspace:
    key: SnapshotKey
    archive: ArchiveFacts


@dataclass(frozen=True, slots=True)
class CreateSandbox:
    """Make the network namespace; the network comes into it while the task is made."""

    pid: int | None = None
    """A live process of the runtime, whose namespace has lost its name: it is given the name again."""


@dataclass(frozen=True, slots=True)
class RepairNetwork:
    """Bring back what is missing of a live runtime's network, or publish what was changed, without a restart."""

    why: str


@dataclass(frozen=True, slots=True)
class LeadOutPorts:
    """Of a runtime without a process: take its network the ports that it does not ask for any more, and may be another's."""

    kept: tuple[HostPort, ...]


@dataclass(frozen=True, slots=True)
class RemoveSandbox:
    pass


@dataclass(frozen=True, slots=True)
class CreateContainer:
    """Make the container record, or bring it to this spec; only while it has no task."""

    key: SnapshotKey
    image: ImageFacts
    spec_hash: str


@dataclass(frozen=True, slots=True)
class StartTask:
    container: ContainerId
    key: SnapshotKey
    refresh: ImageFacts | None = None
    """Resolve the environment again first: a changed Secret counts from the next start."""
    spec_hash: str = ""


@dataclass(frozen=True, slots=True)
class StopTask:
    """The stop signal and a short wait. That it was sent is journalled for a process that takes longer."""

    container: ContainerId
    pid: int
    """Of the main process that it is sent to."""
    signal: str
    grace_seconds: float
    preflight: SnapshotKey | None = None
    """Check first that the store can take an archive of this snapshot: what cannot be kept is not stopped."""


@dataclass(frozen=True, slots=True)
class KillTask:
    """SIGKILL and a bounded wait: the grace period is over."""

    container: ContainerId


@dataclass(frozen=True, slots=True)
class ReapTask:
    """Journal how the main process ended and what the policy says, then delete the task."""

    container: ContainerId
    exit: Exit | None
    """None: there is no task any more to read it from."""
    failures_in_row: int
    next_start_at: float | None
    halted: Halted | None
    restarts: int
    events: tuple[HealthEvent, ...] = ()
    """None for an end that was asked for."""


@dataclass(frozen=True, slots=True)
class RemoveContainer:
    container: ContainerId


@dataclass(frozen=True, slots=True)
class ArchiveWorkspace:
    key: SnapshotKey


@dataclass(frozen=True, slots=True)
class RemoveWorkspace:
    key: SnapshotKey
    ground: Ground


@dataclass(frozen=True, slots=True)
class PurgeArchives:
    """Every archive of the identity that is not marked to be retained; then list again to prove it."""


Step = (
    Begin
    | Finish
    | Note
    | Answer
    | RecordPutAway
    | CloseForgotten
    | KeepWorkspace
    | Dispose
    | Forget
    | EnsureImage
    | PrepareWorkspace
    | AdoptSnapshot
    | RestoreWorkspace
    | CreateSandbox
    | RepairNetwork
    | LeadOutPorts
    | RemoveSandbox
    | CreateContainer
    | StartTask
    | StopTask
    | KillTask
    | ReapTask
    | RemoveContainer
    | ArchiveWorkspace
    | RemoveWorkspace
    | PurgeArchives
)

DESTRUCTIVE = (RemoveWorkspace, PurgeArchives)
"""Steps after which data is not where it was: they need every ground of the second promise."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why nothing is done now although something is wanted. `until` None: an event will come."""

    reason: Reason
    message: str
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do next.

    A `Begin` or `Note` is done before the other steps of its plan; the others are independent of each other and may run
    at the same time. After them the world is looked at again. No steps = nothing to do until `wake_at` (or an event).
    """

    steps: tuple[Step, ...] = ()
    status: RuntimeStatus | None = None
    """None: nobody to show it to, or nothing certain to say."""
    wake_at: float | None = None
    waiting: Waiting | None = None
    settled: bool = False
    """After these steps (at most a `Finish`) nothing is left to do: the status is that of the end, no look is needed."""
