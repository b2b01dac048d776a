"""A node that is asked to enter its archives into the catalogue again does so once, and believes nothing unproven."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from tests.fakes.archives import FakeArchives, FakeStore, StoredArchive
from tests.fakes.background import beside
from tests.fakes.cluster import ClusterState, FakeCluster
from tests.fakes.engine import FakeEngine, FakeMachine, FakeSnapshot
from tests.fakes.guards import TrustingGuards
from tests.fakes.journal import FakeJournal
from tests.fakes.ledger import FakeAgentLedger, LedgerTables
from tests.fakes.sandbox import FakeSandbox, SandboxState
from tests.integration.ledger.samples import finished, ref, workspace

from perdure.api import names
from perdure.api.conditions import Reason
from perdure.api.names import ChainId, InstallationId, NodeId, NodeName, OperationId, Uid
from perdure.api.node import NodeStatus
from perdure.api.request import UNDER_WAY, Verb
from perdure.api.runtime import RequestStatus, Restore, RuntimeSpec
from perdure.plan.certainty import Present
from perdure.plan.world import ArchiveFacts, Freeze, Op, Record, SnapshotFacts
from perdure.reconcile.hands import Hands, Place
from perdure.reconcile.leases import LeaseKeeper
from perdure.reconcile.node_requests import RETRY_SECONDS, NodeRequests
from perdure.reconcile.outbox import Outbox
from perdure.reconcile.ports.archives import ArchiveRequest
from perdure.reconcile.ports.errors import ArchiveCorrupt
from perdure.reconcile.reindex import Reindexer

OURS = InstallationId("installation")
NODE, NODE_ID = NodeName("node"), NodeId("node-1")


class _Quiet:
    """A probe that counts nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class Damageable(FakeArchives):
    """Some archives are not what their manifests say."""

    def __init__(self, store: FakeStore, machine: FakeMachine) -> None:
        super().__init__(store, machine)
        self.damaged: set[int] = set()

    async def verify(self, archive: ArchiveFacts) -> None:
        if archive.sequence in self.damaged:
            raise ArchiveCorrupt(f"the hash of archive {archive.sequence} is wrong")
        await super().verify(archive)


class FrozenGuards(TrustingGuards):
    @property
    def freeze(self) -> Freeze | None:
        return Freeze(Reason.IDENTITY_CHANGED, "the ledger is another one")


class Bench:
    """A node with a store, and a ledger that knows nothing."""

    def __init__(self, guards: type[TrustingGuards] = TrustingGuards) -> None:
        self.tables, self.store, self.machine = LedgerTables(), FakeStore(), FakeMachine()
        self.cluster, self.journal = ClusterState(), FakeJournal()
        self.cluster.nodes[NODE] = NodeStatus(node_id=NODE_ID)
        self.archives = Damageable(self.store, self.machine)
        self.asked: Counter[str] = Counter()
        cluster = FakeCluster(self.cluster, NODE_ID, lambda name, _when: self.asked.update([name]))
        ledger = FakeAgentLedger(NODE_ID, self.tables)
        looking = guards(self.journal)
        hands = Hands(
            engine=FakeEngine(self.machine, OURS),
            sandbox=FakeSandbox(SandboxState()),
            archives=self.archives,
            journal=self.journal,
            ledger=ledger,
            cluster=cluster,
            leases=LeaseKeeper(ledger, looking, self.tables.now),
            outbox=Outbox(self.journal, ledger, NODE),
            probe=_Quiet(),
        )
        self.ledger = ledger
        handlers = {Verb.REINDEX: Reindexer(hands, Place(OURS, NODE, NODE_ID)).answer}
        self.requests = NodeRequests(cluster, NODE, looking, handlers)

    def keep(self, sequence: int, uid: str = "gone", *, n: int = 1, complete: bool = True) -> None:
        request = ArchiveRequest(OURS, ref(uid), sequence, NODE_ID, workspace(ref(uid), n))
        self.store.archives[sequence] = StoredArchive(request, {"a": "b"}, {"a": "b"} if complete else None)

    async def ask(self, request: str = "reindex/1") -> RequestStatus | None:
        self.cluster.node_annotations[NODE] = {names.ANNOTATION_REQUEST: request}
        await self.requests.look()
        return self.answer()

    def answer(self) -> RequestStatus | None:
        return self.cluster.nodes[NODE].last_request

    async def seen(self, request: str | None, name: NodeName = NODE) -> None:
        """A watch shows the node with this request, which the API server has by now."""
        annotations = {names.ANNOTATION_REQUEST: request} if request is not None else {}
        self.cluster.node_annotations[NODE] = annotations
        shown = await FakeCluster(self.cluster).read_node(NODE)
        assert shown is not None
        self.requests.node_seen(msgspec.structs.replace(shown, name=name))

    async def unarchived(self) -> tuple[Uid, ...]:
        """Whose data the next object of the name waits for."""
        facts = await self.ledger.facts(ref("new"), Restore())
        assert isinstance(facts, Present)
        return facts.it.unarchived

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with beside(self.requests.run()):
            yield


async def test_what_is_in_the_store_is_in_the_catalogue_again_and_told() -> None:
    bench = Bench()
    bench.keep(7)
    bench.keep(9)
    answer = await bench.ask()
    assert answer == RequestStatus(id="1", outcome="success", message="2 archives entered, 0 were known, 0 left alone")
    assert {entry.facts.sequence: entry.state for entry in bench.tables.archives.values()} == dict.fromkeys(
        (7, 9), "verified"
    )
    told = [(row.op, row.source, row.correlation) for row in bench.tables.operations.values()]
    assert told == [(Op.ADOPT, "admin_cli", "1")] * 2
    assert all(not lease.token for lease in bench.tables.leases.values()), "the lease is given back"


async def test_a_request_is_done_once_and_another_one_changes_nothing_more() -> None:
    bench = Bench()
    bench.keep(7)
    await bench.ask()
    bench.keep(9)
    await bench.ask()
    assert set(bench.tables.archives) == {7}, "the request was answered"
    answer = await bench.ask("reindex/2")
    assert answer is not None
    assert answer.message == "1 archives entered, 1 were known, 0 left alone"


async def test_a_request_that_a_kill_cut_off_is_taken_up_again() -> None:
    bench = Bench()
    bench.keep(7)
    status = NodeStatus(node_id=NODE_ID, last_request=RequestStatus(id="1", outcome=UNDER_WAY))
    bench.cluster.nodes[NODE] = status
    answer = await bench.ask()
    assert answer is not None
    assert answer.outcome == "success"
    assert set(bench.tables.archives) == {7}


@pytest.mark.looptime
async def test_a_request_is_answered_when_a_watch_shows_it_and_nobody_asks_the_api_server_without_one() -> None:
    bench = Bench()
    bench.keep(7)
    async with bench.running():
        await bench.seen(None)
        await bench.seen("reindex/1", NodeName("another"))
        await asyncio.sleep(3600)
        assert not bench.asked
        await bench.seen("reindex/1")
        await asyncio.sleep(1)
        answer = bench.answer()
        assert answer is not None
        assert answer.outcome == "success"
        bench.keep(9)
        await bench.seen("reindex/1")
        await asyncio.sleep(3600)
    assert set(bench.tables.archives) == {7}, "what is answered is not done again"


@pytest.mark.looptime
async def test_a_request_is_not_forgotten_while_the_api_server_is_away() -> None:
    bench = Bench()
    bench.keep(7)
    async with bench.running():
        await bench.seen("reindex/1")
        bench.cluster.away = "connection refused"
        await asyncio.sleep(60)
        assert bench.answer() is None
        bench.cluster.away = None
        await asyncio.sleep(2 * RETRY_SECONDS)
        answer = bench.answer()
        assert answer is not None
        assert answer.outcome == "success"


async def test_what_is_odd_is_named_and_left_and_the_rest_is_entered() -> None:
    bench = Bench()
    bench.keep(7)
    bench.keep(8, complete=False)
    bench.keep(9)
    await bench.ask()
    bench.tables.archives[9].state = "quarantined"
    bench.tables.archives[7].state = "purged"
    bench.keep(11)
    answer = await bench.ask("reindex/2")
    assert answer is not None
    assert answer.message.startswith("1 archives entered, 0 were known, 3 left alone: ")
    for why in ("never finished", "in quarantine", "was purged"):
        assert why in answer.message
    assert (bench.tables.archives[9].state, bench.tables.archives[7].state) == ("quarantined", "purged")
    assert set(bench.store.archives) == {7, 8, 9, 11}


async def test_an_archive_that_is_not_what_its_manifest_says_is_not_entered() -> None:
    bench = Bench()
    bench.keep(7)
    bench.keep(8)
    bench.archives.damaged.add(8)
    answer = await bench.ask()
    assert answer is not None
    assert "1 archives entered, 0 were known, 1 left alone" in answer.message
    assert set(bench.tables.archives) == {7}


async def test_with_a_ledger_that_is_another_one_nothing_is_entered() -> None:
    bench = Bench(FrozenGuards)
    bench.keep(7)
    answer = await bench.ask()
    assert answer == RequestStatus(id="1", outcome="failure", code="conflict", message="the ledger is another one")
    assert bench.tables.archives == {}


async def test_a_ledger_that_is_away_is_told_and_what_was_entered_stays() -> None:
    bench = Bench()
    bench.keep(7)
    bench.tables.away = "connection refused"
    answer = await bench.ask()
    assert answer is not None
    assert (answer.outcome, answer.code) == ("failure", "LedgerUnavailable")
    bench.tables.away = None
    answer = await bench.ask("reindex/2")
    assert answer is not None
    assert answer.outcome == "success"


async def test_a_request_that_makes_no_sense_is_refused() -> None:
    answer = await Bench().ask("cleanup/1")
    assert answer is not None
    assert (answer.outcome, answer.code) == ("failure", "invalid_request")


@pytest.mark.parametrize("left", ["nothing", "a snapshot", "a record", "its object", "who knows"])
async def test_a_life_counts_as_put_away_only_if_nothing_but_its_archive_is_left(left: str) -> None:
    bench = Bench()
    gone = ref("gone")
    if left == "its object":
        created = bench.cluster.create(gone.kind, gone.namespace, gone.name, RuntimeSpec(image="image:1"))
        gone = ref(created.uid)
    elif left == "a snapshot":
        facts = SnapshotFacts(gone.snapshot_key(1), 1, ChainId("sha256:bb"), "image:1", "sha256:aa", None)
        bench.machine.snapshots[facts.key] = FakeSnapshot(OURS, gone, facts)
    elif left == "a record":
        await bench.journal.commit(put=Record(gone))
    elif left == "who knows":
        bench.machine.away = "connection refused"
    bench.keep(7, gone.uid)
    await bench.ledger.apply([finished(gone, snapshot_key=gone.snapshot_key(1))], NODE)
    await bench.ask()
    assert bench.tables.archives[7].state == "verified"
    assert bench.tables.archives[7].put_away is (left == "nothing")


@pytest.mark.parametrize("newest", ["is rotten", "was never finished", "is in quarantine"])
async def test_a_life_whose_newest_archive_is_left_alone_is_waited_for_until_that_is_entered(newest: str) -> None:
    bench = Bench()
    gone, other = ref("gone"), ref("other")
    for life in (gone, other):
        await bench.ledger.apply([finished(life, snapshot_key=life.snapshot_key(1))], NODE)
    bench.keep(10)
    bench.keep(11, "other")
    bench.keep(12, n=2, complete=newest != "was never finished")
    if newest == "is rotten":
        bench.archives.damaged.add(12)
    elif newest == "is in quarantine":
        lease = await bench.ledger.acquire("key", 60.0)
        sequence = await bench.ledger.begin_archive(OperationId("1"), gone, workspace(gone, 2), NODE_ID, lease)
        bench.tables.archives[12] = bench.tables.archives.pop(sequence)
        await bench.ledger.quarantine(12, "the hash is wrong")
    answer = await bench.ask()
    assert answer is not None
    assert answer.message.startswith("2 archives entered, 0 were known, 1 left alone: ")
    assert await bench.unarchived() == ("gone",), "its newest data is in no archive that can be read"
    assert (bench.tables.archives[10].put_away, bench.tables.archives[11].put_away) == (False, True)
    bench.archives.damaged.clear()
    bench.keep(12, n=2)
    if newest != "is in quarantine":
        await bench.ask("reindex/2")
        assert await bench.unarchived() == ()
        assert bench.tables.runtimes[gone.uid].snapshot_key == gone.snapshot_key(2)
