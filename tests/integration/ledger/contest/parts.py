"""What a holder works with and on: clocks that are wrong, a ledger that remembers, and the witness's engine and store."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.archives import FakeArchives, FakeStore
from tests.fakes.engine import FakeEngine, FakeMachine
from tests.integration.ledger.contest.words import (
    CHAIN,
    DIGEST,
    EFFECT_SECONDS,
    IMAGE,
    TTL_SECONDS,
    Answer,
    Export,
    Remove,
    Verify,
    ask,
)

from perdure.api.conditions import Reason
from perdure.api.names import (
    ChainId,
    InstallationId,
    NodeId,
    SnapshotKey,
    Uid,
)
from perdure.journal.file import FileJournal
from perdure.ledger.agent import PostgresAgentLedger
from perdure.ledger.database import Database
from perdure.plan.world import (
    ArchiveFacts,
)
from perdure.reconcile.ports.archives import ArchiveRequest
from perdure.reconcile.ports.engine import Layer
from perdure.reconcile.ports.errors import EngineUnavailable, StoreError
from perdure.reconcile.ports.ledger import Lease

CLOCK_ERRORS = (0.0, -300.0, 300.0, -7.0, 7.0)
JUMPS_SECONDS = (0.3, 2.0)
LONG_ARCHIVES = 0.2
"""The share of archives that take long; some of them longer than a lease."""
BLINK_SECONDS = 0.3
"""The longest that a sleepy clock moves on between two looks at it."""


class SleepyClock:
    """A monotonic clock that stands still while its process does, as that of a suspended machine: by it, no lease runs out
    in a pause. What such a holder writes, the ledger alone can refuse."""

    def __init__(self) -> None:
        self._now = self._seen = time.monotonic()

    def __call__(self) -> float:
        seen = time.monotonic()
        self._now += min(seen - self._seen, BLINK_SECONDS)
        self._seen = seen
        return self._now


class NotingLedger(PostgresAgentLedger):
    """Remembers of each key the newest fence and until when its lease is good for sure, for the witness."""

    def __init__(self, database: Database, node: NodeId, monotonic: Callable[[], float]) -> None:
        super().__init__(database, InstallationId("contest"), node, monotonic)
        self.newest: dict[str, tuple[int, float]] = {}

    async def acquire(self, key: str, ttl: float) -> Lease:
        asked_at = time.monotonic()
        return self._note(await super().acquire(key, ttl), asked_at + ttl)

    async def renew(self, lease: Lease, ttl: float) -> Lease:
        asked_at = time.monotonic()
        return self._note(await super().renew(lease, ttl), asked_at + ttl)

    async def renew_all(self, leases_: Sequence[Lease], ttl: float) -> Sequence[Lease]:
        asked_at = time.monotonic()
        return tuple(self._note(lease, asked_at + ttl) for lease in await super().renew_all(leases_, ttl))

    def _note(self, lease: Lease, good_until: float) -> Lease:
        self.newest[lease.key] = (lease.fence, good_until)
        return lease


class WitnessedEngine(FakeEngine):
    """Snapshots are the witness's."""

    def __init__(self, socket: Path, journal: FileJournal, ledger: NotingLedger, node: NodeId) -> None:
        super().__init__(FakeMachine(), InstallationId("contest"))
        self._socket = socket
        self._journal = journal
        self._ledger = ledger
        self._node = node

    async def layer(self, key: SnapshotKey) -> Layer:
        return Layer(key, Path("/nowhere"), Path("/nowhere"))

    async def remove_workspace(self, key: SnapshotKey) -> None:
        uid = uid_of(key)
        record, (fence, good_until) = self._journal.record(uid), self._ledger.newest[uid]
        assert record is not None
        assert record.operation is not None
        request = Remove(
            holder=self._node,
            uid=uid,
            key=key,
            operation=record.operation.id,
            fence=fence,
            until_monotonic=good_until - EFFECT_SECONDS,  # when its caller cuts it off, as the engine is told
        )
        if (await ask(self._socket, request, Answer)).text == "late":
            raise EngineUnavailable(f"removing snapshot {key}: the deadline was over")


class WitnessedArchives(FakeArchives):
    """Archives are the witness's; some take long to write."""

    def __init__(self, socket: Path, draw: random.Random) -> None:
        super().__init__(FakeStore(), FakeMachine())
        self._socket = socket
        self._draw = draw

    async def export(self, request: ArchiveRequest, layer: Layer) -> ArchiveFacts:
        if self._draw.random() < LONG_ARCHIVES:
            await asyncio.sleep(self._draw.uniform(0, TTL_SECONDS * 1.3))
        of = request.ref
        stored = await ask(self._socket, Export(of.uid, layer.key, request.sequence), Answer)
        return ArchiveFacts(
            sequence=request.sequence,
            kind=of.kind,
            namespace=of.namespace,
            name=of.name,
            uid=of.uid,
            store="default",
            node_id=None,
            snapshot_key=layer.key,
            image=IMAGE,
            image_digest=DIGEST,
            chain_id=ChainId(CHAIN),
            sha256=stored.text,
            bytes=1,
            entries=1,
            uncompressed_bytes=1,
            empty=False,
        )

    async def verify(self, archive: ArchiveFacts) -> None:
        found = await ask(self._socket, Verify(archive.sequence, archive.sha256), Answer)
        if found.text != "whole":
            raise StoreError(f"archive {archive.sequence}: {found.text}", reason=Reason.STORE_UNAVAILABLE)

    async def compare(self, archive: ArchiveFacts, layer: Layer) -> None:
        """Nothing is written to what is stopped; the witness itself asks what is in the archive when a layer goes."""


class QuietProbe:
    def reconciled(self, outcome: str, seconds: float) -> None: ...
    def stepped(self, step: str, outcome: str, seconds: float) -> None: ...
    def finished(self, op: str, outcome: str, code: str) -> None: ...
    def happened(self, event: str) -> None: ...
    def probed(self, probe: str, result: str) -> None: ...
    def archived(self, direction: str, size: int, seconds: float) -> None: ...


@dataclass(slots=True)
class WrongClock:
    """The machine's wall clock as this process sees it."""

    draw: random.Random
    error: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.error

    async def jump_on_and_on(self) -> None:
        while True:
            await asyncio.sleep(self.draw.uniform(*JUMPS_SECONDS))
            self.error = self.draw.choice(CLOCK_ERRORS)


def uid_of(key: SnapshotKey) -> Uid:
    return Uid(key.partition("-")[2].rpartition("-")[0])
