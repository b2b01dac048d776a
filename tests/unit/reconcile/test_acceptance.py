"""A person accepts that objects are gone: the node is told how, does it for what is absent now, and goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.fakes.cluster import ClusterState, FakeCluster
from tests.fakes.journal import FakeJournal
from tests.integration.ledger.samples import ref

from perdure.api import names
from perdure.api.names import InstallationId, NodeId, NodeName, Uid
from perdure.api.node import NodeStatus
from perdure.api.request import Verb
from perdure.api.runtime import RequestStatus
from perdure.kube.cache import RuntimeCache
from perdure.plan.world import Record
from perdure.reconcile.acceptance import MAX_NAMED, AbsenceAcceptance
from perdure.reconcile.guards import Guards
from perdure.reconcile.node_requests import NodeRequests
from perdure.reconcile.ports.errors import ApiUnavailable

NODE, NODE_ID = NodeName("node"), NodeId("node-1")


class Bench:
    """A node of which `lives` are on record without an object."""

    def __init__(self, lives: int) -> None:
        self.cluster, self.journal, self.told = ClusterState(), FakeJournal(), 0
        self.absence_unknown = False
        self.cluster.nodes[NODE] = NodeStatus(node_id=NODE_ID)
        for n in range(lives):
            self.journal.disk.records[Uid(f"uid-{n}")] = Record(ref(f"uid-{n}", name=f"bot-{n}"))
        self.start()

    def start(self) -> None:
        self.guards = Guards(self.journal)
        acceptance = AbsenceAcceptance(self.guards, self.journal, self.look, self.tell)
        cluster = FakeCluster(self.cluster, NODE_ID)
        self.requests = NodeRequests(cluster, NODE, self.guards, {Verb.ACCEPT_ABSENCE: acceptance.answer})

    async def look(self) -> None:
        if self.absence_unknown:
            raise ApiUnavailable("listing botruntimes: connection refused")
        await self.guards.check_absence(RuntimeCache())

    async def tell(self) -> None:
        assert self.guards.freeze is None, "what has waited is woken when it can go on"
        self.told += 1

    def frozen(self) -> bool:
        return self.guards.freeze is not None

    async def ask(self, id_: str = "1") -> RequestStatus:
        self.cluster.node_annotations[NODE] = {names.ANNOTATION_REQUEST: f"accept-absence/{id_}"}
        await self.requests.look()
        answer = self.cluster.nodes[NODE].last_request
        assert answer is not None
        return answer


async def test_the_freeze_is_over_and_the_answer_names_who_is_meant() -> None:
    bench = Bench(4)
    await bench.look()
    assert bench.frozen()
    answer = await bench.ask()
    assert (answer.id, answer.outcome, answer.code) == ("1", "success", "")
    assert answer.message.startswith("4 runtimes without an object are accepted as gone")
    assert "BotRuntime/team-a/bot-3 (uid uid-3)" in answer.message
    assert not bench.frozen()
    assert bench.told == 1


async def test_what_is_accepted_is_what_is_absent_when_it_is_done_not_at_the_last_list() -> None:
    bench = Bench(4)
    assert (await bench.ask()).outcome == "success"
    await bench.look()
    assert not bench.frozen()


async def test_a_request_that_a_kill_cut_off_is_answered_as_if_there_had_been_none() -> None:
    bench = Bench(4)
    whole = await bench.ask()
    bench.cluster.nodes[NODE] = NodeStatus(node_id=NODE_ID)
    bench.start()
    assert await bench.ask() == whole


async def test_where_nothing_is_absent_there_is_nothing_to_accept() -> None:
    answer = await Bench(0).ask()
    assert (answer.outcome, answer.code) == ("success", "replay_no_op")


async def test_many_are_counted_and_some_are_named() -> None:
    answer = await Bench(300).ask()
    assert answer.message.startswith("300 runtimes")
    assert answer.message.count("(uid ") == MAX_NAMED
    assert "perdure nodes -o wide" in answer.message


async def test_while_nobody_knows_what_is_absent_nothing_is_accepted_and_the_request_waits() -> None:
    bench = Bench(4)
    await bench.look()
    bench.absence_unknown = True
    with pytest.raises(ApiUnavailable):
        await bench.ask()
    assert bench.frozen()
    bench.absence_unknown = False
    assert (await bench.ask()).outcome == "success"


async def test_with_a_full_disk_nothing_is_accepted_and_the_answer_says_so() -> None:
    bench = Bench(4)
    bench.journal.broken = "no space left on device"
    answer = await bench.ask()
    assert (answer.outcome, answer.code) == ("failure", "JournalFailed")
    assert "Nothing is accepted" in answer.message
    assert bench.frozen()
    assert bench.told == 0


async def test_in_another_cluster_where_everything_is_absent_nothing_is_accepted() -> None:
    bench = Bench(4)
    bench.journal.disk.memory = replace(bench.journal.memory(), installation=InstallationId("ours"))
    await bench.guards.check_installation(InstallationId("another"))
    answer = await bench.ask()
    assert (answer.outcome, answer.code) == ("failure", "conflict")
    assert not bench.journal.memory().accepted_absent


async def test_what_a_node_cannot_be_asked_for_is_refused_with_what_it_can() -> None:
    bench = Bench(0)
    bench.cluster.node_annotations[NODE] = {names.ANNOTATION_REQUEST: "cleanup/1"}
    await bench.requests.look()
    answer = bench.cluster.nodes[NODE].last_request
    assert answer is not None
    assert (answer.outcome, answer.code) == ("failure", "invalid_request")
    assert "reindex/ID, accept-absence/ID" in answer.message
