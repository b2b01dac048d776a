"""What the controller does about ports: reserves them with the binding, publishes them, and otherwise stays out of the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import pytest
from tests.fakes.cluster import ClusterState, FakeCluster
from tests.fakes.ledger import FakeAgentLedger, FakeControllerLedger, LedgerTables

from perdure.api.conditions import Reason
from perdure.api.names import ANNOTATION_HOST_PORTS, Kind, NodeId, NodeName, Uid
from perdure.api.network import PortPolicy, PortProtocol, PortStatus, RuntimePort
from perdure.api.node import NodeAmounts, NodeSpec, NodeStatus, RuntimeNode
from perdure.api.runtime import DeletionPolicy, Runtime, RuntimeSpec, RuntimeStatus
from perdure.kube.cache import RuntimeCache
from perdure.plan.allotment import PortRange
from perdure.plan.binding import Candidate
from perdure.reconcile.binder import Binder, Office
from perdure.reconcile.queue import KeyedQueue

GAME = RuntimePort(name="game", container_port=7777, protocol=PortProtocol.UDP)
RCON = RuntimePort(name="rcon", container_port=25575, policy=PortPolicy.STATIC, host_port=9000)


class Desk:
    """A controller over fakes, with two nodes; its calls are counted."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.state = ClusterState()
        self.namespace = self.state.create_namespace("ns").uid
        self.tables = LedgerTables()
        self.cache = RuntimeCache()
        self.state.watchers.append(self.cache)
        self.nodes: tuple[str, ...] = ("a", "b")
        self.restart()

    def restart(self) -> None:
        """A new process: what it does not read again it does not know."""
        queue: KeyedQueue[Uid] = KeyedQueue()
        cluster = FakeCluster(self.state, None, self._call)
        ledger = FakeControllerLedger(self.tables, self._call)
        within = PortRange(7000, 7001)
        self.binder = Binder(Office(cluster, ledger, self.cache, queue, self._candidates, within))

    def _call(self, name: str, when: Literal["before", "after"]) -> None:
        if when == "before":
            self.calls.append(name)

    def _candidates(self) -> Sequence[Candidate]:
        return [Candidate(node(name), alive=True) for name in self.nodes]

    def create(self, name: str, *ports: RuntimePort) -> Uid:
        return self.state.create(Kind.GAME, "ns", name, RuntimeSpec(image="i", ports=ports)).uid

    def runtime(self, name: str) -> Runtime:
        return self.state.runtimes[Kind.GAME, "ns", name]

    async def bound(self, name: str, *ports: RuntimePort) -> Runtime:
        await self.binder.handle(self.create(name, *ports))
        return self.runtime(name)

    def edit(self, name: str, *ports: RuntimePort) -> None:
        self.state.edit(Kind.GAME, "ns", name, msgspec.structs.replace(self.runtime(name).spec, ports=ports))

    def agent(self, name: str) -> FakeAgentLedger:
        return FakeAgentLedger(NodeId(f"id-{name}"), self.tables)

    def reserved(self) -> set[tuple[str, int]]:
        return {(node_id, at.number) for node_id, at in self.tables.ports}

    async def handled(self, name: str) -> list[str]:
        """What handling it once more calls."""
        self.calls.clear()
        await self.binder.handle(self.runtime(name).uid)
        return self.calls


def node(name: str) -> RuntimeNode:
    amounts = NodeAmounts(cpu="8", memory="8Gi")
    status = NodeStatus(node_id=f"id-{name}", allocatable=amounts)
    return RuntimeNode(
        name=NodeName(name),
        uid=name,
        resource_version="1",
        labels={},
        annotations={},
        terminating=False,
        spec=NodeSpec(),
        status=status,
    )


@pytest.fixture
def desk() -> Desk:
    return Desk()


async def test_ports_come_with_the_binding_in_one_write(desk: Desk) -> None:
    runtime = await desk.bound("castle", GAME, RCON)
    assert runtime.annotations[ANNOTATION_HOST_PORTS] == '{"game":7000,"rcon":9000}'
    assert runtime.protected
    assert desk.calls == ["ledger.read", "ledger.bind", "cluster.bind"]


@pytest.mark.parametrize("enforce", ["baseline", "restricted"])
async def test_where_pod_security_is_enforced_only_numbers_of_the_range_are_given(desk: Desk, enforce: str) -> None:
    desk.state.create_namespace("ns", enforce=enforce)
    runtime = await desk.bound("castle", GAME, RCON)
    assert runtime.node_id is None
    (scheduled,) = (one for one in runtime.status.conditions if one.type == "Scheduled")
    assert scheduled.reason == Reason.POD_SECURITY
    assert "port rcon asks for number 9000" in scheduled.message
    assert desk.reserved() == set()
    desk.edit("castle", GAME, msgspec.structs.replace(RCON, host_port=7001))
    await desk.binder.handle(runtime.uid)
    assert desk.runtime("castle").annotations[ANNOTATION_HOST_PORTS] == '{"game":7000,"rcon":7001}'


async def test_what_is_as_it_should_be_costs_nothing(desk: Desk) -> None:
    await desk.bound("castle", GAME, RCON)
    assert await desk.handled("castle") == []
    await desk.bound("plain")
    assert await desk.handled("plain") == []


@pytest.mark.parametrize("annotation", [None, "garbage", '{"game":7001}'])
async def test_a_lost_annotation_is_published_again_from_the_ledger(desk: Desk, annotation: str | None) -> None:
    runtime = await desk.bound("castle", GAME)
    desk.state.change(runtime, annotations={} if annotation is None else {ANNOTATION_HOST_PORTS: annotation})
    desk.state.change(
        desk.runtime("castle"),
        status=RuntimeStatus(
            ports=(PortStatus(name="game", protocol=PortProtocol.UDP, container_port=7777, host_port=7000),)
        ),
    )
    desk.restart()
    await desk.handled("castle")
    assert desk.runtime("castle").host_ports == {"game": 7000}
    assert await desk.handled("castle") == []


async def test_a_number_that_the_agent_had_to_replace_is_published(desk: Desk) -> None:
    runtime = await desk.bound("castle", GAME)
    ref = runtime.ref(desk.namespace)
    assert await desk.agent("a").replace_port(ref, NodeName("a"), "game", 7000) == 7001
    shown = PortStatus(name="game", protocol=PortProtocol.UDP, container_port=7777, host_port=7001)
    desk.state.change(runtime, status=RuntimeStatus(ports=(shown,)))
    await desk.handled("castle")
    assert desk.runtime("castle").host_ports == {"game": 7001}
    assert await desk.handled("castle") == []


async def test_an_edit_reserves_what_is_new_and_gives_back_what_is_not_asked_for(desk: Desk) -> None:
    await desk.bound("castle", GAME)
    desk.edit("castle", GAME, RCON)
    await desk.handled("castle")
    assert desk.runtime("castle").host_ports == {"game": 7000, "rcon": 9000}
    desk.edit("castle")
    await desk.handled("castle")
    assert ANNOTATION_HOST_PORTS not in desk.runtime("castle").annotations
    assert desk.reserved() == set()


async def test_a_spec_that_cannot_be_read_leaves_its_ports_alone(desk: Desk) -> None:
    runtime = await desk.bound("castle", GAME)
    desk.state.change(runtime, spec=RuntimeSpec(image=""), invalid="it makes no sense")
    assert await desk.handled("castle") == []
    assert desk.reserved() == {("id-a", 7000)}


async def test_a_runtime_goes_where_its_port_is_free_and_waits_where_there_is_none(desk: Desk) -> None:
    first, second = await desk.bound("one", RCON), await desk.bound("two", RCON)
    assert (first.node_name, second.node_name) == ("a", "b")
    third = await desk.bound("three", RCON)
    assert third.node_id is None
    assert third.status.phase == "Pending"
    assert {condition.reason for condition in third.status.conditions} == {"PortTaken"}
    assert "GameRuntime ns/one" in third.status.conditions[0].message
    desk.state.delete(Kind.GAME, "ns", "one")
    await end_of(desk, first)
    await desk.handled("three")
    assert desk.runtime("three").node_name == "a"


async def test_a_range_that_is_used_up_is_said(desk: Desk) -> None:
    desk.nodes = ("a",)
    for name in ("one", "two"):
        await desk.bound(name, GAME)
    third = await desk.bound("three", GAME)
    assert {condition.reason for condition in third.status.conditions} == {Reason.PORT_RANGE_EXHAUSTED}
    assert "7000-7001" in third.status.conditions[0].message


async def test_a_port_that_a_bound_runtime_cannot_have_is_told_once_and_changes_nothing(desk: Desk) -> None:
    desk.nodes = ("a",)
    await desk.bound("one", RCON)
    await desk.bound("two", GAME)
    desk.edit("two", RCON)
    for _ in range(3):
        await desk.handled("two")
    (event,) = desk.state.events
    assert (event.reason, event.warning) == ("PortTaken", True)
    assert desk.runtime("two").host_ports == {"game": 7000}
    assert desk.reserved() == {("id-a", 9000), ("id-a", 7000)}


async def end_of(desk: Desk, runtime: Runtime) -> None:
    """Its node has done with it; the controller lets it go."""
    desk.tables.runtimes[runtime.uid].released = True
    await desk.binder.handle(runtime.uid)


@pytest.mark.parametrize("policy", DeletionPolicy)
async def test_ports_are_kept_until_the_life_is_over(desk: Desk, policy: DeletionPolicy) -> None:
    runtime = await desk.bound("castle", GAME)
    spec = msgspec.structs.replace(runtime.spec, deletion_policy=policy)
    desk.state.edit(Kind.GAME, "ns", "castle", spec)
    desk.state.delete(Kind.GAME, "ns", "castle")
    await desk.handled("castle")
    assert desk.reserved() == {("id-a", 7000)}
    await end_of(desk, runtime)
    assert desk.reserved() == set()
    assert not desk.state.runtimes


async def test_ports_of_a_runtime_that_was_given_up_are_freed(desk: Desk) -> None:
    await desk.bound("castle", GAME)
    desk.state.annotate(Kind.GAME, "ns", "castle", {"perdure.dev/force-release": "burnt"})
    desk.state.delete(Kind.GAME, "ns", "castle")
    await desk.handled("castle")
    assert desk.reserved() == set()


# ---------------------------------------------------------------------------------------------- what is left behind


async def test_ports_of_an_object_that_went_before_it_was_protected_are_swept(desk: Desk) -> None:
    uid = desk.create("castle", GAME)
    desk.state.watchers.clear()
    desk.state.annotate(Kind.GAME, "ns", "castle", {"someone": "was quicker"})
    await desk.binder.handle(uid)
    assert not desk.runtime("castle").protected
    desk.state.delete(Kind.GAME, "ns", "castle")
    desk.tables.now = lambda: 61.0
    await desk.binder.free_abandoned_ports()
    assert desk.reserved() == {("id-a", 7000)}, "nobody has told the controller that the object is gone"
    gone = desk.cache.get(uid)
    assert gone is not None
    desk.cache.deleted(gone)
    await desk.binder.free_abandoned_ports()
    assert desk.reserved() == set()


async def test_ports_of_a_container_that_may_run_without_its_object_are_kept(desk: Desk) -> None:
    runtime = await desk.bound("castle", GAME)
    assert await desk.agent("a").ports_published(runtime.ref(desk.namespace), {"game": 7000})
    desk.state.remove(runtime)
    desk.tables.now = lambda: 3600.0
    await desk.binder.free_abandoned_ports()
    assert desk.reserved() == {("id-a", 7000)}
    desk.tables.runtimes[runtime.uid].released = True
    await desk.binder.free_abandoned_ports()
    assert desk.reserved() == set()


async def test_an_api_server_that_is_away_proves_nothing(desk: Desk) -> None:
    runtime = await desk.bound("castle", GAME)
    desk.state.remove(runtime)
    desk.tables.now = lambda: 3600.0
    desk.state.away = "it is away"
    await desk.binder.free_abandoned_ports()
    assert desk.reserved() == {("id-a", 7000)}
