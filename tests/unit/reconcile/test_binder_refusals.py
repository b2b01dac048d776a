"""What fits nowhere waits longer each time, and is tried at once when something changed that may let it in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Literal

import pytest
from tests.crash.clock import jump_through
from tests.fakes.background import beside
from tests.fakes.cluster import ClusterState, FakeCluster
from tests.fakes.ledger import FakeControllerLedger, LedgerTables

from perdure.api.names import Kind, NodeName, Uid
from perdure.api.network import PortPolicy, RuntimePort
from perdure.api.node import NodeAmounts, NodeSpec, NodeStatus, RuntimeNode
from perdure.api.runtime import ResourceRequests, Resources, Runtime, RuntimeSpec
from perdure.kube.cache import RuntimeCache
from perdure.plan.binding import Candidate
from perdure.reconcile.binder import Binder, Office
from perdure.reconcile.namespaces import NAMESPACE_SECONDS
from perdure.reconcile.ports.cluster import NamespaceFacts
from perdure.reconcile.queue import KeyedQueue
from perdure.reconcile.refusals import FIRST_SECONDS, LONGEST_SECONDS
from perdure.reconcile.workers import work_with

RCON = RuntimePort(name="rcon", container_port=25575, policy=PortPolicy.STATIC, host_port=9000)


class Cluster(FakeCluster):
    """Counts how often a namespace is read."""

    reads = 0

    async def get_namespace(self, name: str) -> NamespaceFacts | None:
        self.reads += 1
        return await super().get_namespace(name)


class Desk:
    """A controller with its workers over fakes, and one node of one core."""

    def __init__(self) -> None:
        self.tried: list[float] = []
        """When the ledger was asked about some runtime."""
        self.state = ClusterState()
        self.state.create_namespace("ns")
        self.tables = LedgerTables()
        self.queue: KeyedQueue[Uid] = KeyedQueue()
        self.cache = RuntimeCache(self.queue.add)
        self.state.watchers.append(self.cache)
        self.cluster = Cluster(self.state)
        ledger = FakeControllerLedger(self.tables, self._call)
        self.binder = Binder(Office(self.cluster, ledger, self.cache, self.queue, _candidates))
        self.crashes: list[str] = []

    def _call(self, name: str, when: Literal["before", "after"]) -> None:
        if (name, when) == ("ledger.read", "before"):
            self.tried.append(clock())

    def create(self, name: str, *ports: RuntimePort, cpu: str = "10m") -> Uid:
        resources = Resources(requests=ResourceRequests(cpu=cpu, memory="1Mi"))
        return self.state.create(Kind.GAME, "ns", name, RuntimeSpec(image="i", ports=ports, resources=resources)).uid

    def runtime(self, name: str) -> Runtime:
        return self.state.runtimes[Kind.GAME, "ns", name]

    def end(self, name: str) -> None:
        """People delete it, and its node has done with it."""
        runtime = self.runtime(name)
        self.state.delete(Kind.GAME, "ns", name)
        self.tables.runtimes[runtime.uid].released = True
        self.queue.add(runtime.uid)

    def play(self, scene: Callable[[], Awaitable[None]]) -> None:
        """A scene on a clock that jumps, while keys are handled."""

        async def whole() -> None:
            async with beside(work_with(4, self.queue, self.binder.handle, self.crashes.append)):
                await scene()
            self.queue.close()

        jump_through(whole())
        assert self.crashes == []


def clock() -> float:
    return asyncio.get_running_loop().time()


async def a_moment() -> None:
    await asyncio.sleep(0.1)


def _candidates() -> Sequence[Candidate]:
    status = NodeStatus(node_id="id-a", allocatable=NodeAmounts(cpu="1", memory="8Gi"))
    node = RuntimeNode(
        name=NodeName("a"),
        uid="a",
        resource_version="1",
        labels={},
        annotations={},
        terminating=False,
        spec=NodeSpec(),
        status=status,
    )
    return [Candidate(node, alive=True)]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_it_is_tried_again_after_twice_as_long_each_time_up_to_a_minute(desk: Desk) -> None:
    async def scene() -> None:
        desk.create("huge", cpu="2")
        await a_moment()
        began = len(desk.tried) - 1
        await asyncio.sleep(300)
        gaps = [later - earlier for earlier, later in pairwise(desk.tried[began:])]
        assert gaps == pytest.approx([5, 10, 20, 40, 60, 60, 60], abs=0.1)

    desk.play(scene)


def test_an_edit_is_tried_at_once_and_begins_anew(desk: Desk) -> None:
    async def scene() -> None:
        desk.create("huge", cpu="2")
        await asyncio.sleep(300)
        smaller = Resources(requests=ResourceRequests(cpu="3", memory="1Mi"))
        desk.state.edit(Kind.GAME, "ns", "huge", RuntimeSpec(image="i", resources=smaller))
        await a_moment()
        edited_at = desk.tried[-1]
        assert clock() - edited_at <= 0.1
        await asyncio.sleep(FIRST_SECONDS)
        assert desk.tried[-1] - edited_at == pytest.approx(FIRST_SECONDS, abs=0.1)

    desk.play(scene)


def test_what_a_runtime_leaves_at_its_end_is_had_soon_by_those_that_wait(desk: Desk) -> None:
    async def scene() -> None:
        desk.create("old", cpu="900m")
        await a_moment()
        desk.create("next", cpu="900m")
        desk.create("huge", cpu="2")
        await asyncio.sleep(10 * LONGEST_SECONDS)
        assert desk.runtime("next").node_id is None
        before = len(desk.tried)
        desk.end("old")
        await asyncio.sleep(FIRST_SECONDS + 0.1)
        assert desk.runtime("next").node_id == "id-a"
        await asyncio.sleep(3 * FIRST_SECONDS)
        assert len(desk.tried) - before <= 8, "whoever is refused still goes on waiting as before"

    desk.play(scene)


def ends(desk: Desk) -> None:
    desk.end("first")


def is_edited(desk: Desk) -> None:
    desk.state.edit(Kind.GAME, "ns", "first", RuntimeSpec(image="i"))


@pytest.mark.parametrize("give_back", [ends, is_edited])
def test_a_port_that_is_given_back_is_had_soon_by_a_bound_runtime_that_waits_for_it(
    desk: Desk, give_back: Callable[[Desk], None]
) -> None:
    async def scene() -> None:
        desk.create("first", RCON)
        await a_moment()
        desk.create("second")
        await a_moment()
        desk.state.edit(Kind.GAME, "ns", "second", RuntimeSpec(image="i", ports=(RCON,)))
        await asyncio.sleep(10 * LONGEST_SECONDS)
        assert desk.runtime("second").host_ports == {}
        give_back(desk)
        await asyncio.sleep(FIRST_SECONDS + 0.1)
        assert desk.runtime("second").host_ports == {"rcon": 9000}

    desk.play(scene)


def test_many_that_fit_nowhere_read_their_namespace_together(desk: Desk) -> None:
    async def scene() -> None:
        for number in range(100):
            desk.create(f"huge-{number}", cpu="2")
        await asyncio.sleep(LONGEST_SECONDS)
        before = desk.cluster.reads
        await asyncio.sleep(4 * LONGEST_SECONDS)
        assert desk.cluster.reads - before <= 4 * LONGEST_SECONDS / NAMESPACE_SECONDS
        assert len(desk.tried) > 400, "each of them was tried"

    desk.play(scene)


def test_a_runtime_is_bound_in_the_namespace_that_it_was_made_in_and_in_none_of_before(desk: Desk) -> None:
    async def scene() -> None:
        desk.create("huge", cpu="2")
        await asyncio.sleep(3 * FIRST_SECONDS + 0.1)
        assert clock() - desk.tried[-1] < NAMESPACE_SECONDS
        desk.state.delete(Kind.GAME, "ns", "huge")
        anew = desk.state.create_namespace("ns")
        desk.create("small")
        await a_moment()
        assert desk.runtime("small").namespace_uid == anew.uid

    desk.play(scene)
