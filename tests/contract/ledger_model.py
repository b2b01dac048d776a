"""The small model that `ledger_machine` holds ledgers against, and the ledgers that it is played on."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Protocol

from psycopg import sql
from tests.fakes.ledger import FakeAgentLedger, FakeControllerLedger, LedgerTables
from tests.integration.ledger.samples import (
    NAME_A,
    NAME_B,
    NODE_A,
    NODE_B,
    ref,
)

from perdure.api.names import InstallationId, NodeId, OperationId, RuntimeRef, SnapshotKey, Uid, generation
from perdure.api.phases import EDGES, Phase
from perdure.ledger.agent import PostgresAgentLedger
from perdure.ledger.controller import PostgresControllerLedger
from perdure.ledger.database import Database
from perdure.plan.world import ArchiveFacts, Bound, LedgerFacts
from perdure.reconcile.ports.journal import OperationFinished
from perdure.reconcile.ports.ledger import AgentLedger, Binding, ControllerLedger, Lease

REFS = (ref("first"), ref("second"), ref("apart", name="other"))
"""Two lives of one identity, and one of another."""
NODES = {NODE_A: NAME_A, NODE_B: NAME_B}

Row = tuple[bool, bool, Phase | None, int | None]
"""Of an operation: whether it is begun, whether it is finished, its phase after, its fence."""

State = tuple[Phase, int]
"""Of a life: its phase after the newest operation, and how many moves were refused because they are on no edge."""


class Played(Protocol):
    """A ledger that a machine plays on."""

    def agent(self, node: NodeId) -> AgentLedger: ...
    def controller(self) -> ControllerLedger: ...
    async def pass_time(self, seconds: float) -> None: ...
    async def operations(self) -> dict[OperationId, Row]: ...
    async def states(self) -> dict[Uid, State]: ...


class FakePlayed:
    def __init__(self) -> None:
        self._now = 0.0
        self._tables = LedgerTables(now=lambda: self._now)

    def agent(self, node: NodeId) -> AgentLedger:
        return FakeAgentLedger(node, self._tables)

    def controller(self) -> ControllerLedger:
        return FakeControllerLedger(self._tables)

    async def pass_time(self, seconds: float) -> None:
        self._now += seconds

    async def operations(self) -> dict[OperationId, Row]:
        return {
            id_: (entry.started_at is not None, entry.finished_at is not None, entry.after, entry.fence)
            for id_, entry in self._tables.operations.items()
        }

    async def states(self) -> dict[Uid, State]:
        rows = self._tables.runtimes.items()
        return {uid: (row.state, row.refused) for uid, row in rows if row.state is not None}


class PostgresPlayed:
    """To let time pass, everything is made to run out so much sooner."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._installation = InstallationId(secrets.token_hex(8))

    def agent(self, node: NodeId) -> AgentLedger:
        return PostgresAgentLedger(self._database, self._installation, node)

    def controller(self) -> ControllerLedger:
        return PostgresControllerLedger(self._database, self._installation)

    async def pass_time(self, seconds: float) -> None:
        statement = sql.SQL(
            "UPDATE leases SET expires_at = expires_at - make_interval(secs => %(seconds)s)"
            " WHERE installation = %(installation)s"
        )
        await self._database.write("passing time", statement, {**self._here(), "seconds": seconds})

    async def operations(self) -> dict[OperationId, Row]:
        statement = sql.SQL(
            "SELECT id, started_at IS NOT NULL AS begun, finished_at IS NOT NULL AS done, after, fence"
            " FROM operations WHERE installation = %(installation)s"
        )
        rows = await self._database.rows("reading operations", statement, self._here())
        assert len({row["id"] for row in rows}) == len(rows), "an operation has two rows"
        return {
            OperationId(row["id"]): (
                row["begun"],
                row["done"],
                Phase(row["after"]) if row["after"] else None,
                row["fence"],
            )
            for row in rows
        }

    async def states(self) -> dict[Uid, State]:
        statement = sql.SQL(
            "SELECT uid, actual_state, refused FROM runtimes"
            " WHERE installation = %(installation)s AND actual_state IS NOT NULL"
        )
        rows = await self._database.rows("reading states", statement, self._here())
        return {Uid(row["uid"]): (Phase(row["actual_state"]), row["refused"]) for row in rows}

    def _here(self) -> dict[str, object]:
        return {"installation": self._installation}


@dataclass(slots=True)
class Life:
    """What the ledger is to know of a runtime."""

    snapshot_key: SnapshotKey | None = None
    released: bool = False
    state: Phase | None = None
    counted: tuple[float, int] = (0.0, 0)
    refused: int = 0

    def move(self, row: OperationFinished) -> None:
        """Along an edge, and by a newer operation than the last one, as one journal counts."""
        if row.numbered_from == self.counted[0] and row.n < self.counted[1]:
            return
        self.counted = row.numbered_from, row.n
        if self.state is None or row.after == self.state or row.after in EDGES[self.state]:
            self.state = row.after
        else:
            self.refused += 1


@dataclass(slots=True)
class Archived:
    facts: ArchiveFacts
    operation: OperationId
    state: str = "writing"
    put_away: bool = False


@dataclass(slots=True)
class Model:
    """All that counts of the ledger, in the plainest form."""

    now: float = 0.0
    fence: int = 0
    holders: dict[str, tuple[NodeId, Lease, float]] = field(default_factory=dict)
    """Key -> who was last given the lease, and when it runs out; given back: at once, and it is renewed no more."""
    operations: dict[OperationId, Row] = field(default_factory=dict)
    lives: dict[Uid, Life] = field(default_factory=dict)
    archives: dict[int, Archived] = field(default_factory=dict)
    bindings: dict[Uid, Binding] = field(default_factory=dict)

    def is_ours(self, lease: Lease) -> bool:
        held = self.holders.get(lease.key)
        return held is not None and held[1].token == lease.token

    def is_good(self, lease: Lease) -> bool:
        return self.is_ours(lease) and self.holders[lease.key][2] > self.now

    def is_free(self, key: str, node: NodeId) -> bool:
        held = self.holders.get(key)
        return held is None or held[0] == node or held[2] <= self.now

    def begin(self, id_: OperationId, fence: int | None) -> None:
        begun, done, after, known = self.operations.get(id_, (False, False, None, None))
        if fence is not None and not (begun and done):
            known = max(fence, known or 0)
        self.operations[id_] = (True, done, after, known)

    def finish(self, row: OperationFinished, fence: int | None, *, moves_again: bool, release: bool) -> None:
        begun, done, after, known = self.operations.get(row.id, (False, False, None, fence))
        self.operations[row.id] = (begun, True, after if done else row.after, known)
        life = self.lives.setdefault(row.ref.uid, Life()) if not done or moves_again else Life(released=True)
        if life.released:
            return
        keys = (key for key in (life.snapshot_key, row.snapshot_key) if key is not None)
        life.snapshot_key = max(keys, key=generation, default=None)
        life.move(row)
        life.released = release

    def facts(self, of: RuntimeRef) -> LedgerFacts:
        life = self.lives.get(of.uid, Life())
        mine = [entry for entry in self.archives.values() if (entry.facts.kind, entry.facts.name) == (of.kind, of.name)]
        good = [entry for entry in mine if entry.state == "verified"]
        full = [entry.facts for entry in good if not entry.facts.empty]
        bad = [entry.facts.sequence for entry in mine if entry.state == "quarantined"]
        kept = self._put_away(of.uid)
        others = [other.uid for other in REFS if other.identity == of.identity and other.uid != of.uid]
        unarchived = [
            uid
            for uid in others
            if (other := self.lives.get(uid)) and other.snapshot_key and not other.released and not self._put_away(uid)
        ]
        bound = self.bindings.get(of.uid)
        return LedgerFacts(
            bound=Bound(bound.node_id, of.namespace_uid) if bound else None,
            data_seen=life.snapshot_key,
            released=life.released,
            latest=full[-1] if full else None,
            quarantined=max(bad, default=None),
            unarchived=tuple(unarchived),
            put_away=kept[-1] if kept else None,
            unfinished=tuple(
                sorted(
                    id_
                    for id_, (begun, done, *_) in self.operations.items()
                    if begun and not done and id_.startswith(f"{of.uid}/")
                )
            ),
            purgeable=tuple(
                entry.facts.sequence
                for entry in mine
                if entry.state != "purged" and self._is_no_later(entry.facts.uid, of.uid)
            ),
            spared=tuple(
                entry.facts.sequence
                for entry in mine
                if entry.state != "purged" and not self._is_no_later(entry.facts.uid, of.uid)
            ),
        )

    def _is_no_later(self, uid: Uid, than: Uid) -> bool:
        """Whether that life is the other one, or is known to have been bound before it."""
        bound = list(self.bindings)
        return uid == than or (uid in bound and than in bound and bound.index(uid) < bound.index(than))

    def _put_away(self, uid: Uid) -> list[ArchiveFacts]:
        """Archives that hold the newest data of a life whose removal was seen to."""
        life = self.lives.get(uid, Life())
        return [
            entry.facts
            for entry in self.archives.values()
            if entry.state == "verified"
            and entry.put_away
            and (entry.facts.uid, entry.facts.snapshot_key) == (uid, life.snapshot_key)
        ]
