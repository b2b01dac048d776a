"""Records and leases against a small model of them: random calls by two nodes, and after each what the ledger then shows.

Played on the fake and on PostgreSQL by `test_ledger_machine`. Each example is an installation of its own, so that one
database serves all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import strategies as some
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from tests.contract.ledger_model import NODES, REFS, Archived, Model, Played
from tests.integration.ledger.samples import (
    NAME_A,
    NODE_A,
    NODE_B,
    TTL,
    archive,
    finished,
    started,
    workspace,
)

from perdure.api.archive import object_name
from perdure.api.conditions import Reason
from perdure.api.names import NodeId, OperationId, RuntimeRef, SnapshotKey
from perdure.api.phases import Phase
from perdure.api.runtime import Restore
from perdure.journal.file import FileJournal, JournalSettings
from perdure.plan.certainty import Present
from perdure.reconcile.outbox import Outbox
from perdure.reconcile.ports.errors import PortError, StaleFence
from perdure.reconcile.ports.journal import LedgerRow, OperationFinished, OperationRow
from perdure.reconcile.ports.ledger import Binding, Lease

T = TypeVar("T")

refs = some.sampled_from(REFS)
nodes = some.sampled_from(tuple(NODES))
numbers = some.integers(1, 4)
moments = some.sampled_from((100.0, 101.0, 102.0))
keys = some.sampled_from((None, "key-1", "key-2"))


class LedgerMachine(RuleBasedStateMachine):
    """`runner` outlives the machine, as what it plays on may. `folder` is for the journal of a node, empty at first."""

    leases = Bundle("leases")
    ends = Bundle("ends")
    """Rows that were written once: they come again."""

    def __init__(self, played: Played, runner: asyncio.Runner, folder: Path) -> None:
        super().__init__()
        self.model = Model()
        self.played = played
        self._runner = runner
        self.agents = {node: played.agent(node) for node in NODES}
        self.journal = FileJournal.open(folder, JournalSettings(reserve_bytes=0))

    def teardown(self) -> None:
        self.run(self.journal.close())

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(call)

    # ------------------------------------------------------------------------------------------ leases

    @rule(target=leases, of=refs, node=nodes, lost=some.booleans())
    def acquire(self, of: RuntimeRef, node: NodeId, lost: bool) -> object:
        """`lost`: the answer does not arrive, and the call is repeated."""
        free = self.model.is_free(of.uid, node)
        taken = None
        for _ in range(2 if lost else 1):
            with suppress_if(lambda error: error.reason is Reason.IN_PROGRESS):
                taken = self.run(self.agents[node].acquire(of.uid, TTL))
        assert (taken is not None) == free
        if taken is None:
            return multiple()
        assert taken.fence > self.model.fence, "a fence did not rise"
        self.model.fence = taken.fence
        self.model.holders[of.uid] = (node, taken, self.model.now + TTL)
        return taken

    @rule(lease=leases, node=nodes)
    def renew(self, lease: Lease, node: NodeId) -> None:
        if not self.model.is_ours(lease):
            self.refused(self.agents[node].renew(lease, TTL))
            return
        assert self.run(self.agents[node].renew(lease, TTL)).fence == lease.fence
        self._prolong(lease)

    @rule(some_leases=some.lists(leases, max_size=4, unique_by=lambda lease: lease.key), node=nodes)
    def renew_all(self, some_leases: list[Lease], node: NodeId) -> None:
        ours = [lease for lease in some_leases if self.model.is_ours(lease)]
        renewed = self.run(self.agents[node].renew_all(some_leases, TTL))
        assert {(lease.key, lease.fence) for lease in renewed} == {(lease.key, lease.fence) for lease in ours}
        for lease in ours:
            self._prolong(lease)

    def _prolong(self, lease: Lease) -> None:
        node, taken, _ = self.model.holders[lease.key]
        self.model.holders[lease.key] = (node, taken, self.model.now + TTL)

    @rule(lease=consumes(leases), node=nodes)
    def release(self, lease: Lease, node: NodeId) -> None:
        ours = self.model.is_ours(lease)
        self.run(self.agents[node].release(lease))
        if ours:
            holder, taken, _ = self.model.holders[lease.key]
            self.model.holders[lease.key] = (holder, replace(taken, token="given back"), self.model.now)

    @rule(seconds=some.sampled_from((25.0, 2 * TTL)))
    def pass_time(self, seconds: float) -> None:
        self.run(self.played.pass_time(seconds))
        self.model.now += seconds

    # ------------------------------------------------------------------------------------------ operations

    @rule(lease=leases, n=numbers)
    def begin(self, lease: Lease, n: int) -> None:
        row = started(ref_of(lease), n)
        if self.write(self.agents[NODE_A].begin(row, NAME_A, lease), lease):
            self.model.begin(row.id, lease.fence)

    @rule(target=ends, lease=leases, n=numbers, at=moments, key=keys, release=some.booleans(), draw=some.data())
    def finish(self, lease: Lease, n: int, at: float, key: str | None, release: bool, draw: some.DataObject) -> object:
        row = self._end(ref_of(lease), n, at, key, draw)
        if not self.write(self.agents[NODE_A].finish(row, NAME_A, lease, release=release), lease):
            return multiple()
        self.model.finish(row, lease.fence, moves_again=True, release=release)
        return row

    @rule(target=ends, of=refs, n=numbers, at=moments, key=keys, node=nodes, draw=some.data())
    def apply(
        self, of: RuntimeRef, n: int, at: float, key: str | None, node: NodeId, draw: some.DataObject
    ) -> OperationFinished:
        end = self._end(of, n, at, key, draw)
        pair: list[OperationRow] = [started(of, n), end]
        rows = tuple(draw.draw(some.permutations(pair)))
        self.run(self.agents[node].apply(rows, NODES[node]))
        self._applied(rows)
        return end

    @rule(row=ends, node=nodes)
    def apply_again(self, row: OperationFinished, node: NodeId) -> None:
        before = self.run(self.played.operations())
        self.run(self.agents[node].apply([row], NODES[node]))
        assert self.run(self.played.operations()) == before

    @rule(of=refs, n=numbers, at=moments, key=keys, draw=some.data())
    def a_cancelled_caller_gets_its_rows(
        self, of: RuntimeRef, n: int, at: float, key: str | None, draw: some.DataObject
    ) -> None:
        rows = (started(of, n), self._end(of, n, at, key, draw))
        sent: list[LedgerRow] = []

        async def cancelled() -> None:
            caller = asyncio.ensure_future(self.journal.commit(rows=rows))
            await asyncio.sleep(0)
            caller.cancel()
            await asyncio.wait([caller])
            await self.journal.commit()  # whatever was on its way is on the disk when a later commit is
            sent.extend(self.journal.unsent())
            await Outbox(self.journal, self.agents[NODE_A], NAME_A).flush()

        self.run(cancelled())
        assert sent == list(rows)
        assert self.journal.unsent() == ()
        self._applied(rows)

    def _applied(self, rows: tuple[OperationRow, ...]) -> None:
        for row in rows:
            if isinstance(row, OperationFinished):
                self.model.finish(row, None, moves_again=False, release=False)
            else:
                self.model.begin(row.id, None)

    def _end(self, of: RuntimeRef, n: int, at: float, key: str | None, draw: some.DataObject) -> OperationFinished:
        after, journal = draw.draw(some.sampled_from(Phase)), draw.draw(some.sampled_from((1.0, 1.0, 1.0, 2.0)))
        return finished(of, n, at=at, after=after, snapshot_key=key and f"{of.uid}-{key}", numbered_from=journal)

    # ------------------------------------------------------------------------------------------ archives

    @rule(lease=leases, n=numbers)
    def begin_archive(self, lease: Lease, n: int) -> None:
        of = ref_of(lease)
        operation = OperationId(f"{of.uid}/{n}")
        known = [
            sequence
            for sequence, entry in self.model.archives.items()
            if entry.operation == operation and entry.state in ("writing", "verified")
        ]
        space = replace(workspace(of), key=SnapshotKey(f"{of.uid}-key-1"))
        found = self.write(self.agents[NODE_A].begin_archive(operation, of, space, NODE_A, lease), lease)
        if found is None:
            return
        (sequence,) = found
        if known:
            assert known == [sequence]
            return
        assert sequence > max(self.model.archives, default=0), "sequences order archives"
        facts = replace(
            archive(of, sequence), snapshot_key=space.key, object_name=object_name(of.kind, of.name, sequence)
        )
        self.model.archives[sequence] = Archived(facts, operation)

    @rule(lease=leases, which=some.integers(0, 5), empty=some.booleans())
    def finish_archive(self, lease: Lease, which: int, empty: bool) -> None:
        entry = self._some_archive(lease, which)
        if entry is None:
            return
        facts = replace(entry.facts, empty=empty) if entry.state == "writing" else entry.facts
        wanted = entry.state in ("writing", "verified")
        if self.write(self.agents[NODE_A].finish_archive(facts, lease), lease, wanted=wanted):
            entry.facts, entry.state = facts, "verified"

    @rule(lease=leases, which=some.integers(0, 5))
    def put_away(self, lease: Lease, which: int) -> None:
        entry = self._some_archive(lease, which)
        if entry is None:
            return
        wanted = entry.state == "verified"
        if self.write(self.agents[NODE_A].put_away(entry.facts.sequence, lease), lease, wanted=wanted):
            entry.put_away = True

    @rule(lease=leases, which=some.integers(0, 5))
    def mark_purging(self, lease: Lease, which: int) -> None:
        entry = self._some_archive(lease, which)
        if entry is None:
            return
        wanted = entry.state != "purged"
        if self.write(
            self.agents[NODE_A].mark_purging(
                next(of for of in REFS if of.uid == entry.facts.uid), entry.facts.sequence, lease
            ),
            lease,
            wanted=wanted,
        ):
            entry.state = "purging"

    @rule(which=some.integers(0, 5))
    def mark_purged(self, which: int) -> None:
        entry = self._some_archive(None, which)
        if entry is None:
            return
        try:
            self.run(self.agents[NODE_A].mark_purged(entry.facts.sequence))
        except PortError:
            assert entry.state not in ("purging", "purged")
        else:
            assert entry.state in ("purging", "purged"), "a purge that was never begun was ended"
            entry.state = "purged"

    @rule(which=some.integers(0, 5))
    def quarantine(self, which: int) -> None:
        entry = self._some_archive(None, which)
        if entry is not None:
            self.run(self.agents[NODE_A].quarantine(entry.facts.sequence, "a bit was flipped"))
            entry.state = "quarantined" if entry.state in ("writing", "verified") else entry.state

    def _some_archive(self, lease: Lease | None, which: int) -> Archived | None:
        mine = [entry for entry in self.model.archives.values() if lease is None or entry.facts.uid == lease.key]
        return mine[which % len(mine)] if mine else None

    # ------------------------------------------------------------------------------------------ bindings

    @rule(of=refs, node=nodes)
    def bind(self, of: RuntimeRef, node: NodeId) -> None:
        bound = self.run(self.played.controller().bind(of, NODES[node], node, "image:1"))
        assert bound == self.model.bindings.setdefault(of.uid, Binding(of.uid, NODES[node], node))

    # ------------------------------------------------------------------------------------------ what must hold

    @invariant()
    def the_ledger_shows_what_the_model_says(self) -> None:
        for of in REFS:
            facts = self.run(self.agents[NODE_B].facts(of, Restore()))
            assert facts == Present(self.model.facts(of))
        assert self.run(self.played.operations()) == self.model.operations
        moved = {uid: life for uid, life in self.model.lives.items() if life.state is not None}
        assert self.run(self.played.states()) == {uid: (life.state, life.refused) for uid, life in moved.items()}

    @invariant()
    def the_highest_fence_is_known(self) -> None:
        assert self.run(self.agents[NODE_A].identity()).highest_fence == self.model.fence

    def write(self, awaitable: Coroutine[Any, Any, T], lease: Lease, *, wanted: bool = True) -> tuple[T] | None:
        """What a write under a lease answers; None if it was refused, which is so if and only if it has to be."""
        if not self.model.is_good(lease):
            self.refused(awaitable)
            return None
        answer = None
        with suppress_if(lambda error: not wanted and not isinstance(error, StaleFence)):
            answer = (self.run(awaitable),)
        assert wanted is (answer is not None), "a write that leads nowhere was taken"
        return answer

    def refused(self, awaitable: Coroutine[Any, Any, object]) -> None:
        try:
            self.run(awaitable)
        except StaleFence:
            return
        raise AssertionError("a write under a lost lease was taken")


@contextmanager
def suppress_if(expected: Callable[[PortError], bool]) -> Iterator[None]:
    """Port errors that are expected here end the block; others are the test's."""
    try:
        yield
    except PortError as error:
        if not expected(error):
            raise


def ref_of(lease: Lease) -> RuntimeRef:
    return next(of for of in REFS if of.uid == lease.key)
