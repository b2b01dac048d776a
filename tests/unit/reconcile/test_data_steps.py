"""Before a layer goes, its archive was good minutes ago, for the same operation; else it is read again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.fakes.archives import FakeArchives, FakeStore, StoredArchive
from tests.fakes.cluster import ClusterState, FakeCluster
from tests.fakes.engine import FakeEngine, FakeMachine, FakeSnapshot
from tests.fakes.guards import TrustingGuards
from tests.fakes.journal import FakeJournal
from tests.fakes.ledger import ArchiveEntry, FakeAgentLedger, LedgerTables
from tests.fakes.sandbox import FakeSandbox, SandboxState
from tests.integration.ledger.samples import archive, ref, workspace

from perdure.api.conditions import Reason
from perdure.api.names import InstallationId, NodeId, NodeName, OperationId
from perdure.plan.steps import Ground, RemoveWorkspace
from perdure.plan.world import ArchiveFacts, Op, OpenOperation, Record, SnapshotFacts, Source
from perdure.reconcile.data_steps import VERIFIED_SECONDS, DataSteps
from perdure.reconcile.hands import Hands, Place
from perdure.reconcile.leases import LeaseKeeper
from perdure.reconcile.outbox import Outbox
from perdure.reconcile.ports.archives import ArchiveRequest
from perdure.reconcile.ports.errors import PortError
from perdure.reconcile.ports.ledger import Binding

OURS, NODE, NODE_ID = InstallationId("installation"), NodeName("node"), NodeId("node-1")
REF = ref()
KEY = workspace(REF).key
REMOVE = RemoveWorkspace(KEY, Ground.ARCHIVED)

pytestmark = pytest.mark.looptime


class _Quiet:
    """A probe that counts nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class Bench:
    """A stopped runtime with data, and a clean-up of it that is under way."""

    def __init__(self) -> None:
        clock = asyncio.get_running_loop().time
        self.store, self.machine, self.journal = FakeStore(), FakeMachine(), FakeJournal()
        self.tables = LedgerTables(now=clock)
        self.calls: Counter[str] = Counter()
        ledger = FakeAgentLedger(NODE_ID, self.tables, monotonic=clock)
        hands = Hands(
            engine=FakeEngine(self.machine, OURS),
            sandbox=FakeSandbox(SandboxState()),
            archives=FakeArchives(self.store, self.machine, lambda name, _when: self.calls.update([name])),
            journal=self.journal,
            ledger=ledger,
            cluster=FakeCluster(ClusterState(), NODE_ID),
            leases=LeaseKeeper(ledger, TrustingGuards(), clock),
            outbox=Outbox(self.journal, ledger, NODE),
            probe=_Quiet(),
        )
        self.steps = DataSteps(hands, Place(OURS, NODE, NODE_ID))
        space = replace(workspace(REF), prepared=True, ever_started=True)
        facts = SnapshotFacts(KEY, space.n, space.chain_id, space.image, space.image_digest, None)
        self.machine.snapshots[KEY] = FakeSnapshot(OURS, REF, facts, {"save": "level 3"})
        self.first = Record(ref=REF, workspace=space)

    async def begin(self, operation: str) -> None:
        known = self.journal.record(REF.uid) or self.first
        open_ = OpenOperation(OperationId(operation), Op.CLEANUP, Source.AUTO_TTL, 0.0, None, committed=True)
        await self.journal.commit(put=replace(known, operation=open_))

    def archived(self) -> ArchiveFacts | None:
        record = self.journal.record(REF.uid)
        return record.workspace.archived if record is not None and record.workspace is not None else None

    async def refused(self) -> PortError:
        with pytest.raises(PortError) as refusal:
            await self.steps.remove_workspace(REMOVE, REF)
        assert KEY in self.machine.snapshots
        return refusal.value


async def archived_bench() -> Bench:
    bench = Bench()
    await bench.begin("op-1")
    await bench.steps.archive(REF)
    return bench


async def test_what_was_archived_just_now_is_not_read_again_and_the_layer_is_looked_at() -> None:
    bench = await archived_bench()
    await asyncio.sleep(VERIFIED_SECONDS - 1)
    await bench.steps.remove_workspace(REMOVE, REF)
    assert (bench.calls["archives.verify"], bench.calls["archives.compare"]) == (0, 1)
    assert KEY not in bench.machine.snapshots


@pytest.mark.parametrize("why", ["minutes ago", "for another operation"])
async def test_an_archive_that_rotted_since_is_made_anew_before_anything_goes(why: str) -> None:
    bench = await archived_bench()
    rotten = bench.archived()
    assert rotten is not None
    if why == "minutes ago":
        await asyncio.sleep(VERIFIED_SECONDS + 1)
    else:
        await bench.begin("op-2")
    bench.store.archives[rotten.sequence].files["save"] = "l\0vel 3"
    refusal = await bench.refused()
    assert refusal.reason is Reason.ARCHIVE_CORRUPT
    assert not refusal.blocks_data
    assert bench.archived() is None
    assert bench.tables.archives[rotten.sequence].state == "quarantined"
    await bench.steps.archive(REF)
    anew = bench.archived()
    assert anew is not None
    assert anew.sequence > rotten.sequence
    await bench.steps.remove_workspace(REMOVE, REF)
    assert bench.store.archives[anew.sequence].files == {"save": "level 3"}
    assert KEY not in bench.machine.snapshots


async def test_an_archive_that_lost_its_bytes_just_now_is_made_anew_before_anything_goes() -> None:
    bench = await archived_bench()
    emptied = bench.archived()
    assert emptied is not None
    bench.store.archives[emptied.sequence].files.clear()
    assert (await bench.refused()).reason is Reason.ARCHIVE_CORRUPT
    assert bench.calls["archives.verify"] == 0
    assert bench.tables.archives[emptied.sequence].state == "quarantined"
    await bench.steps.archive(REF)
    await bench.steps.remove_workspace(REMOVE, REF)
    anew = max(bench.store.archives)
    assert anew > emptied.sequence
    assert bench.store.archives[anew].files == {"save": "level 3"}
    assert KEY not in bench.machine.snapshots


async def test_an_archive_that_is_not_in_its_store_any_more_is_waited_for() -> None:
    """The store may not be mounted: it is no more believed to be empty than anything else is believed to be gone."""
    bench = await archived_bench()
    archive = bench.archived()
    assert archive is not None
    await asyncio.sleep(VERIFIED_SECONDS + 1)
    away = bench.store.archives.pop(archive.sequence)
    for _ in range(2):
        assert (await bench.refused()).reason is Reason.ARCHIVE_NOT_REACHABLE
        assert bench.archived() == archive
    bench.store.archives[archive.sequence] = away
    await bench.steps.remove_workspace(REMOVE, REF)
    assert KEY not in bench.machine.snapshots


async def test_a_layer_that_was_written_since_is_archived_anew_and_the_older_archive_stays() -> None:
    bench = await archived_bench()
    older = bench.archived()
    assert older is not None
    bench.machine.snapshots[KEY].files["save"] = "level 4"
    assert (await bench.refused()).reason is Reason.ARCHIVE_FAILED
    assert bench.archived() is None
    await bench.steps.archive(REF)
    newer = bench.archived()
    assert newer is not None
    assert [bench.tables.archives[one.sequence].state for one in (older, newer)] == ["verified", "verified"]
    assert bench.store.archives[older.sequence].files == {"save": "level 3"}
    assert bench.store.archives[newer.sequence].files == {"save": "level 4"}
    await bench.steps.remove_workspace(REMOVE, REF)
    assert KEY not in bench.machine.snapshots


async def test_a_repetition_under_the_same_operation_ends_at_the_newest_of_its_archives() -> None:
    """As after a crash before the journal had it."""
    bench = await archived_bench()
    for level in (4, 5):
        bench.machine.snapshots[KEY].files["save"] = f"level {level}"
        for _ in range(2):
            await bench.journal.commit(put=bench.journal.records()[REF.uid])
            await bench.steps.archive(REF)
    newest = bench.archived()
    assert newest is not None
    assert newest.sequence == 3
    assert [entry.state for entry in bench.tables.archives.values()] == ["verified"] * 3


async def test_a_purge_that_comes_late_spares_what_an_object_made_anew_has() -> None:
    """Its node was away, somebody took the finalizer off by hand, and the new one's data is in an archive alone."""
    bench = Bench()
    later = ref("made-anew")
    for sequence, life in ((7, REF), (9, later)):
        bench.tables.bindings[life.uid] = Binding(life.uid, NODE, NODE_ID)
        facts = archive(life, sequence, node=NODE_ID)
        bench.tables.archives[sequence] = ArchiveEntry(facts, life, OperationId(f"op-{sequence}"), "verified")
        request = ArchiveRequest(OURS, life, sequence, NODE_ID, workspace(life))
        bench.store.archives[sequence] = StoredArchive(request, {"save": life.uid}, {"save": life.uid})
    await bench.steps.purge_archives(REF)
    assert {sequence: entry.state for sequence, entry in bench.tables.archives.items()} == {7: "purged", 9: "verified"}
    assert set(bench.store.archives) == {9}
