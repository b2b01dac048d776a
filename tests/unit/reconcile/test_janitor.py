"""What other nodes purged is deleted from this node's store, unless the ledger that says so may be another one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from structlog.testing import capture_logs
from tests.fakes.archives import FakeArchives, FakeStore, StoredArchive
from tests.fakes.engine import FakeMachine
from tests.fakes.journal import FakeJournal
from tests.fakes.ledger import ArchiveEntry, ArchiveState, FakeAgentLedger, LedgerTables
from tests.integration.ledger.samples import ref, workspace
from tests.property.model import archive_of

from perdure.api.conditions import Reason
from perdure.api.names import ChainId, InstallationId, NodeId, OperationId, Uid
from perdure.kube.cache import RuntimeCache
from perdure.plan.world import ArchiveFacts, ImageFacts, Record
from perdure.reconcile.guards import Guards
from perdure.reconcile.janitor import Janitor
from perdure.reconcile.ports.archives import ArchiveRequest
from perdure.reconcile.ports.errors import LedgerChanged, LedgerUnavailable, PortError, StoreError
from perdure.reconcile.ports.ledger import LedgerIdentity

NODE = NodeId("node-1")


class Archives(FakeArchives):
    """`stuck`: one that cannot be deleted. `deleted` is called after each that was."""

    stuck: int | None = None
    deleted: Callable[[], None] | None = None

    async def delete(self, archive: ArchiveFacts) -> None:
        if archive.sequence == self.stuck:
            raise StoreError("deleting it: Operation not permitted", reason=Reason.STORE_UNAVAILABLE)
        await super().delete(archive)
        if self.deleted is not None:
            self.deleted()


class Bench:
    """A store with two archives, one of which was purged from another node."""

    def __init__(self) -> None:
        self.tables, self.store, self.journal = LedgerTables(), FakeStore(), FakeJournal()
        life, image = ref(), ImageFacts("image:1", "sha256:aa", ChainId("sha256:bb"))
        states: tuple[tuple[int, ArchiveState], ...] = ((7, "purging"), (8, "verified"))
        for sequence, state in states:
            request = ArchiveRequest(InstallationId("ours"), life, sequence, NODE, workspace(life))
            self.store.archives[sequence] = StoredArchive(request, {}, {})
            facts = archive_of(life, sequence, NODE, life.snapshot_key(1), image)
            self.tables.archives[sequence] = ArchiveEntry(facts, life, OperationId("preserve"), state)
        self.guards = Guards(self.journal)
        self.archives = Archives(self.store, FakeMachine())
        self.janitor = Janitor(FakeAgentLedger(NODE, self.tables), self.archives, NODE, self.guards)

    async def checked(self) -> Bench:
        """A first connection was made, and it led to the ledger."""
        await self.guards.check_ledger(self.tables.identity())
        return self

    def untouched(self) -> bool:
        return set(self.store.archives) == {7, 8} and self.tables.archives[7].state == "purging"


async def test_what_was_purged_is_deleted_and_nothing_else() -> None:
    bench = await Bench().checked()
    assert await bench.janitor.sweep() == 1
    assert set(bench.store.archives) == {8}
    assert bench.tables.archives[7].state == "purged"
    assert await bench.janitor.sweep() == 0


async def test_another_ledger_deletes_nothing_also_if_nobody_has_noticed_yet() -> None:
    bench = Bench()
    await bench.guards.check_ledger(LedgerIdentity("the one it knew", 1))
    assert bench.guards.freeze is None
    with pytest.raises(LedgerChanged):
        await bench.janitor.sweep()
    assert bench.untouched()
    assert bench.guards.freeze is not None


async def test_nothing_is_deleted_before_anybody_has_looked_which_ledger_it_is() -> None:
    bench = Bench()
    with pytest.raises(LedgerUnavailable, match="has not been checked yet"):
        await bench.janitor.sweep()
    assert bench.untouched()


async def test_nothing_is_deleted_while_many_objects_are_absent() -> None:
    bench = await Bench().checked()
    for uid in map(Uid, "abcd"):
        bench.journal.disk.records[uid] = Record(ref(uid))
    await bench.guards.check_absence(RuntimeCache())
    with pytest.raises(PortError, match="have no object any more"):
        await bench.janitor.sweep()
    assert bench.untouched()
    await bench.guards.accept_absence()
    assert await bench.janitor.sweep() == 1


async def test_a_ledger_that_is_away_deletes_nothing() -> None:
    bench = await Bench().checked()
    bench.tables.away = "connection refused"
    with pytest.raises(LedgerUnavailable):
        await bench.janitor.sweep()
    bench.tables.away = None
    assert bench.untouched()


async def test_one_that_cannot_be_deleted_keeps_no_other() -> None:
    bench = await Bench().checked()
    bench.tables.archives[8].state = "purging"
    bench.archives.stuck = 7
    with capture_logs() as told:
        assert await bench.janitor.sweep() == 1
    assert [(line["archive"], "not permitted" in line["error"]) for line in told if "error" in line] == [(7, True)]
    assert set(bench.store.archives) == {7}
    assert [bench.tables.archives[n].state for n in (7, 8)] == ["purging", "purged"]
    bench.archives.stuck = None
    assert await bench.janitor.sweep() == 1
    assert not bench.store.archives


async def test_a_ledger_that_goes_away_meanwhile_ends_the_sweep() -> None:
    bench = await Bench().checked()
    bench.tables.archives[8].state = "purging"

    def lose_ledger() -> None:
        bench.tables.away = "connection refused"

    bench.archives.deleted = lose_ledger
    with pytest.raises(LedgerUnavailable):
        await bench.janitor.sweep()
    assert set(bench.store.archives) == {8}
    bench.tables.away, bench.archives.deleted = None, None
    assert await bench.janitor.sweep() == 2
    assert [bench.tables.archives[n].state for n in (7, 8)] == ["purged", "purged"]
