"""The node's own record, and the rows that go from it to the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from perdure.api.names import (
    InstallationId,
    OperationId,
    RuntimeRef,
    SnapshotKey,
    Uid,
)
from perdure.api.phases import Phase
from perdure.plan.health import HealthKind, ProbeKind
from perdure.plan.world import (
    Op,
    Outcome,
    Record,
    Source,
)


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
    correlation: str = ""
    """The same for all that one cause brings about."""


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
    numbered_from: float = 0.0
    n: int = 0
    """Which operation of its life it is, as `Record` counts: by this rows are in order, whatever clocks say."""


@dataclass(frozen=True, slots=True)
class OperationFailing:
    """Why an operation that goes on until it succeeds does not: told when the reason changes, and forgotten with its end."""

    id: OperationId
    ref: RuntimeRef
    at: float
    error_code: str
    """The `Reason`."""
    message: str


OperationRow = OperationStarted | OperationFailing | OperationFinished


@dataclass(frozen=True, slots=True)
class HealthRow:
    """Something happened to a container. The id is deterministic: written twice, it is one row."""

    id: str
    ref: RuntimeRef
    kind: HealthKind
    at: float
    message: str = ""
    probe: ProbeKind | None = None
    code: int | None = None


LedgerRow = OperationRow | HealthRow


@dataclass(frozen=True, slots=True)
class NodeMemory:
    """What the node remembers of the world outside, so that it notices when that world is another one."""

    installation: InstallationId | None = None
    ledger: str | None = None
    """The ledger's identity (a random id in the database)."""
    highest_fence: int = 0
    accepted_absent: frozenset[Uid] = frozenset()
    """Lives whose objects are gone with the consent of a person: no sign of an accident."""


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
        rows: Sequence[LedgerRow] = (),
        memory: NodeMemory | None = None,
    ) -> None:
        """All of it in one durable append: it is there entirely or not at all."""

    def unsent(self) -> Sequence[LedgerRow]:
        """Rows that the ledger has not confirmed, oldest first."""

    async def sent(self, count: int) -> None:
        """The ledger confirmed the first `count` of `unsent()`."""

    def refused(self) -> Sequence[LedgerRow]:
        """Rows that the ledger refused as they are. They are kept, and hold up no other."""

    async def set_aside(self) -> None:
        """The ledger refused the first of `unsent()` as it is: it is set aside."""

    async def take_back(self) -> None:
        """What was set aside is sent again, before all others."""
