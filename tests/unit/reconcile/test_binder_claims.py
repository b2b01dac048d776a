"""What the controller makes of labels that claim a binding: anybody who may write an object can write its labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import pytest
from tests.fakes.cluster import ClusterState, FakeCluster
from tests.fakes.ledger import FakeControllerLedger, LedgerTables
from tests.unit.reconcile.test_binder_ports import node

from perdure.api.names import (
    ANNOTATION_FORCE_RELEASE,
    ANNOTATION_HOST_PORTS,
    FINALIZER,
    LABEL_NAMESPACE_UID,
    LABEL_NODE,
    LABEL_NODE_ID,
    Kind,
    Uid,
)
from perdure.api.network import RuntimePort
from perdure.api.node import NodeSpec
from perdure.api.runtime import Runtime, RuntimeSpec, RuntimeStatus
from perdure.kube.cache import RuntimeCache
from perdure.plan.binding import Candidate
from perdure.reconcile.binder import Binder, Office
from perdure.reconcile.queue import KeyedQueue

PORT = RuntimePort(name="game", container_port=7777)
LIVED = RuntimeStatus(phase="Running", snapshot_key="gr-1-1")


class Desk:
    """A controller over fakes with two nodes, a victim's namespace and one of somebody else."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.state = ClusterState()
        self.victims, self.own = (self.state.create_namespace(name).uid for name in ("victim", "own"))
        self.tables = LedgerTables()
        self.cache = RuntimeCache()
        self.state.watchers.append(self.cache)
        self.cordoned: set[str] = set()
        self.restart()

    def restart(self) -> None:
        """A new process: what it does not read again it does not know."""
        queue: KeyedQueue[Uid] = KeyedQueue()
        cluster = FakeCluster(self.state, None, self._call)
        self.binder = Binder(
            Office(cluster, FakeControllerLedger(self.tables, self._call), self.cache, queue, self._candidates)
        )

    def _call(self, name: str, when: Literal["before", "after"]) -> None:
        if when == "before":
            self.calls.append(name)

    def _candidates(self) -> Sequence[Candidate]:
        nodes = {name: node(name) for name in ("a", "b")}
        for name in self.cordoned:
            nodes[name] = msgspec.structs.replace(nodes[name], spec=NodeSpec(unschedulable=True))
        return [Candidate(known, alive=True) for known in nodes.values()]

    def forge(self, node_name: str = "b", *, status: RuntimeStatus | None = None, port: bool = False) -> Runtime:
        """Finalizer and labels by hand, with the uid of the victim's namespace."""
        spec = RuntimeSpec(image="i", ports=(PORT,) if port else ())
        made = self.state.create(Kind.BOT, "own", "bot", spec)
        labels = {LABEL_NODE: node_name, LABEL_NODE_ID: f"id-{node_name}", LABEL_NAMESPACE_UID: self.victims}
        annotations = {ANNOTATION_HOST_PORTS: '{"game":9999}'} if port else {}
        return self.state.change(
            made, labels=labels, finalizers=(FINALIZER,), annotations=annotations, status=status or RuntimeStatus()
        )

    @property
    def runtime(self) -> Runtime:
        return self.state.runtimes[Kind.BOT, "own", "bot"]

    async def handled(self) -> list[str]:
        self.calls.clear()
        await self.binder.handle(self.runtime.uid)
        return self.calls


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_a_forged_binding_is_decided_anew_and_told_once(desk: Desk) -> None:
    desk.cordoned = {"b"}
    forged = desk.forge("b", port=True)
    await desk.handled()
    bound = desk.runtime
    assert (bound.node_name, bound.namespace_uid) == ("a", desk.own)
    assert bound.host_ports != {"game": 9999}
    assert desk.tables.runtimes[forged.uid].ref.namespace_uid == desk.own
    (event,) = desk.state.events
    assert (event.reason, event.warning) == ("NotBound", True)
    assert await desk.handled() == []


async def test_a_forged_binding_that_no_node_can_take_stays_unbound_and_is_no_load(desk: Desk) -> None:
    desk.cordoned = {"a", "b"}
    forged = desk.forge()
    for _ in range(2):
        await desk.handled()
    assert forged.uid not in desk.tables.bindings
    assert desk.runtime.status == RuntimeStatus(), "the agent of that node tells it"
    assert len(desk.state.events) == 1
    desk.cordoned = set()
    await desk.handled()
    assert desk.runtime.namespace_uid == desk.own


async def test_a_claim_on_a_node_that_is_not_there_is_told_in_the_status(desk: Desk) -> None:
    desk.cordoned = {"a", "b"}
    desk.forge("nowhere")
    await desk.handled()
    assert {condition.reason for condition in desk.runtime.status.conditions} == {"Unschedulable"}


async def test_a_binding_is_asked_for_once_by_each_process_and_never_by_the_one_that_made_it(desk: Desk) -> None:
    made = desk.state.create(Kind.BOT, "own", "bot", RuntimeSpec(image="i"))
    assert await desk.handled() == ["ledger.read", "ledger.bind", "cluster.bind"]
    assert await desk.handled() == []
    desk.restart()
    assert await desk.handled() == ["ledger.read"]
    assert await desk.handled() == []
    assert made.uid in desk.tables.bindings


@pytest.mark.parametrize("label", [LABEL_NODE, LABEL_NODE_ID, LABEL_NAMESPACE_UID])
async def test_labels_that_were_changed_after_the_binding_are_published_again(desk: Desk, label: str) -> None:
    desk.state.create(Kind.BOT, "own", "bot", RuntimeSpec(image="i"))
    await desk.handled()
    truth = desk.runtime.labels
    desk.state.change(desk.runtime, labels={**truth, label: "forged"})
    await desk.handled()
    assert desk.runtime.labels == truth


async def test_what_has_lived_is_bound_to_its_node_again_when_the_ledger_was_put_back(desk: Desk) -> None:
    desk.forge("b", status=LIVED, port=True)
    await desk.handled()
    bound = desk.runtime
    assert (bound.node_name, bound.namespace_uid, bound.host_ports) == ("b", desk.own, {"game": 9999})
    assert bound.status == LIVED


@pytest.mark.parametrize("status", [RuntimeStatus(), RuntimeStatus(phase="Pending", node_name="b")])
async def test_a_forged_binding_can_be_deleted_and_frees_nothing_of_others(desk: Desk, status: RuntimeStatus) -> None:
    desk.forge(status=status)
    desk.state.delete(Kind.BOT, "own", "bot")
    await desk.handled()
    assert (Kind.BOT, "own", "bot") not in desk.state.runtimes
    assert desk.tables.runtimes == {}


async def test_what_shows_data_is_not_let_go_before_its_node_dealt_with_it(desk: Desk) -> None:
    desk.forge(status=LIVED)
    desk.state.delete(Kind.BOT, "own", "bot")
    await desk.handled()
    assert desk.runtime.protected


async def test_a_release_by_force_is_recorded_under_the_real_namespace(desk: Desk) -> None:
    forged = desk.forge(status=LIVED)
    desk.state.annotate(Kind.BOT, "own", "bot", {ANNOTATION_FORCE_RELEASE: "it is not mine"})
    desk.state.delete(Kind.BOT, "own", "bot")
    await desk.handled()
    assert (Kind.BOT, "own", "bot") not in desk.state.runtimes
    assert desk.tables.runtimes[forged.uid].ref.namespace_uid == desk.own
