"""Leadership, heartbeats and the controller's view of nodes, on a real API server with Leases in milliseconds."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable

import pytest
import structlog
from tests.integration.kube.conftest import WAIT_SECONDS, eventually

from perdure.api.names import LEASE_NAMESPACE, NodeId, NodeName
from perdure.api.node import NodeStatus
from perdure.kube import paths
from perdure.kube.access import ClusterSource
from perdure.kube.client import ApiClient, ApiRefused, Json
from perdure.kube.heartbeat import NodeHeartbeat, NodeNameTaken, Pulse, read_pulses
from perdure.kube.lease import LeaderLease, LeadershipLost, LeaderTiming
from perdure.kube.nodes import NodeCache, NodeReporter, NodeView
from perdure.kube.preflight import ensure_namespace

pytestmark = pytest.mark.env

FAST = LeaderTiming(duration=1.0, deadline=0.6, retry=0.1)


@pytest.fixture(autouse=True)
async def system_namespace(client: ApiClient) -> None:
    await ensure_namespace(client)
    await ensure_namespace(client)
    assert await client.get(paths.namespace(LEASE_NAMESPACE), "reading our namespace")


@pytest.fixture
async def lease_name(client: ApiClient) -> AsyncIterator[str]:
    name = f"lead-{uuid.uuid4().hex[:8]}"
    yield name
    await remove(client, paths.lease(name))


@pytest.fixture
async def node(client: ApiClient) -> AsyncIterator[NodeName]:
    name = NodeName(f"node-{uuid.uuid4().hex[:8]}")
    yield name
    await remove(client, paths.lease(f"node-{name}"))
    await remove(client, paths.node(name))


async def remove(client: ApiClient, path: str) -> None:
    try:
        found = await client.get(path, "reading what a test left")
    except ApiRefused:
        return
    await client.delete(path, "removing what a test left", found["metadata"]["uid"])


@pytest.fixture
def leader(client: ApiClient, lease_name: str) -> Callable[[str], LeaderLease]:
    return lambda holder: LeaderLease(client, holder, timing=FAST, name=lease_name)


async def test_one_leads_and_the_next_leads_with_a_higher_epoch(leader: Callable[[str], LeaderLease]) -> None:
    first, second = leader("first"), leader("second")
    assert await first.acquire() == 1
    waiting = asyncio.create_task(second.acquire())
    holding = asyncio.create_task(first.hold())
    done, _ = await asyncio.wait({waiting, holding}, timeout=2 * FAST.duration)
    assert done == set(), "the holder renews, so nobody else leads"
    holding.cancel()
    await first.release()
    assert await asyncio.wait_for(waiting, 10) == 2
    await second.release()


async def test_leader_that_stopped_renewing_is_followed(leader: Callable[[str], LeaderLease]) -> None:
    assert await leader("crashed").acquire() == 1
    assert await asyncio.wait_for(leader("next").acquire(), 10) == 2


async def test_leader_that_was_followed_while_it_slept_ends(leader: Callable[[str], LeaderLease]) -> None:
    slept = leader("slept")
    await slept.acquire()
    await leader("next").acquire()
    with pytest.raises(LeadershipLost):
        await asyncio.wait_for(slept.hold(), 10)


async def test_of_many_that_want_to_lead_at_once_one_does(leader: Callable[[str], LeaderLease]) -> None:
    candidates = [asyncio.create_task(leader(f"candidate-{n}").acquire()) for n in range(5)]
    done, waiting = await asyncio.wait(candidates, timeout=FAST.duration / 2, return_when=asyncio.ALL_COMPLETED)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert [task.result() for task in done] == [1]


async def test_epoch_is_above_what_the_ledger_remembers(leader: Callable[[str], LeaderLease]) -> None:
    assert await leader("one").acquire(above=41) == 42


async def test_leader_without_an_api_server_ends_in_time(
    tmp_path: pytest.TempPathFactory, client: ApiClient, lease_name: str
) -> None:
    leading = LeaderLease(client, "one", timing=FAST, name=lease_name)
    await leading.acquire()
    await client.close()
    started = asyncio.get_running_loop().time()
    with pytest.raises(LeadershipLost, match="could not be renewed"):
        await asyncio.wait_for(leading.hold(), 10)
    assert asyncio.get_running_loop().time() - started < FAST.duration
    await client.open()


def heartbeat(client: ApiClient, node: NodeName, node_id: str) -> NodeHeartbeat:
    return NodeHeartbeat(client, node, NodeId(node_id), renew_every=0.1, duration=1.0)


async def test_agent_takes_its_own_lease_again_at_once(client: ApiClient, node: NodeName) -> None:
    await heartbeat(client, node, "id").claim()
    await asyncio.wait_for(heartbeat(client, node, "id").claim(), 0.9)


async def test_second_living_agent_of_a_name_is_refused(client: ApiClient, node: NodeName) -> None:
    first = heartbeat(client, node, "first")
    await first.claim()
    beating = asyncio.create_task(first.run())
    with pytest.raises(NodeNameTaken, match="first is alive under the node name"):
        await heartbeat(client, node, "second").claim()
    beating.cancel()


async def test_name_of_a_dead_agent_is_taken_over_and_the_dead_one_notices(client: ApiClient, node: NodeName) -> None:
    dead = heartbeat(client, node, "dead")
    await dead.claim()
    await asyncio.wait_for(heartbeat(client, node, "replacement").claim(), 10)
    with pytest.raises(NodeNameTaken, match="replacement took over"):
        await dead.beat()


async def test_controller_sees_who_is_alive(client: ApiClient, node: NodeName) -> None:
    now = 1000.0
    changes = 0

    def changed() -> None:
        nonlocal changes
        changes += 1

    cache = NodeCache(client, changed, clock_seconds=lambda: now)
    beat = heartbeat(client, node, "id")
    await beat.claim()
    await NodeReporter(client).report(node, NodeStatus(node_id="id", engine="containerd"))

    def view() -> NodeView:
        return next(view for view in cache.views() if view.node.name == node)

    await cache.refresh()
    assert cache.synced
    assert view().alive
    assert cache.name_of(NodeId("id")) == node
    seen = changes
    now += 41
    assert not view().alive
    await cache.refresh()
    assert changes == seen + 1, "that a node is lost is told"
    await beat.beat()
    await cache.refresh()
    assert view().alive


def alive(cache: NodeCache, node: NodeName) -> bool:
    return next(view.alive for view in cache.views() if view.node.name == node)


async def silent_for(client: ApiClient, node: NodeName, seconds: float) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            if ((await read_pulses(client))[node].silent_seconds or 0.0) > seconds:
                return
            await asyncio.sleep(0.2)


async def test_a_controller_that_has_just_started_takes_nobody_for_alive_who_was_silent_before(
    client: ApiClient, node: NodeName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.kube.clock.now_micro", lambda: "2100-01-01T00:00:00.000000Z")
    beat = heartbeat(client, node, "id")
    await beat.claim()
    await NodeReporter(client).report(node, NodeStatus(node_id="id"))
    await silent_for(client, node, 2.0)
    cache = NodeCache(client, clock_seconds=lambda: 1000.0, stale_after=2.0)
    await cache.refresh()
    assert not alive(cache, node)
    patient = NodeCache(client, clock_seconds=lambda: 1000.0, stale_after=3600.0)
    await patient.refresh()
    assert alive(patient, node)
    monkeypatch.setattr("perdure.kube.clock.now_micro", lambda: "2000-01-01T00:00:00.000000Z")
    await beat.beat()
    await cache.refresh()
    assert alive(cache, node), "whatever the agent takes the time to be"


async def test_a_lease_that_does_not_say_when_it_was_renewed_is_watched_from_now_on(
    client: ApiClient, node: NodeName
) -> None:
    await heartbeat(client, node, "id").claim()
    await NodeReporter(client).report(node, NodeStatus(node_id="id"))
    forgotten: Json = {"metadata": {"managedFields": [{}]}}
    await client.merge_patch(paths.lease(f"node-{node}"), "forgetting who wrote what", forgotten)
    assert (await read_pulses(client))[node].silent_seconds is None
    now = 1000.0
    cache = NodeCache(client, clock_seconds=lambda: now)
    await cache.refresh()
    assert alive(cache, node)
    now += 41
    await cache.refresh()
    assert not alive(cache, node)


async def test_a_node_without_a_lease_is_not_alive(client: ApiClient, node: NodeName) -> None:
    await NodeReporter(client).report(node, NodeStatus(node_id="id"))
    cache = NodeCache(client)
    await cache.refresh()
    assert not alive(cache, node)
    beat = heartbeat(client, node, "id")
    await beat.claim()
    await cache.refresh()
    assert alive(cache, node)
    await remove(client, paths.lease(f"node-{node}"))
    await cache.refresh()
    assert not alive(cache, node)


async def test_the_lease_of_a_node_that_a_watch_shows_first_is_looked_for_at_once(
    client: ApiClient, node: NodeName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.kube.nodes.POLL_SECONDS", 3600.0)
    cache = NodeCache(client)
    running = asyncio.create_task(cache.run())
    await eventually(lambda: cache.synced, "nodes are listed")
    await heartbeat(client, node, "id").claim()
    reporter = NodeReporter(client)
    await reporter.report(node, NodeStatus(node_id="id"))
    seen = await reporter.read(node)
    assert seen is not None
    cache.apply(seen)
    assert not alive(cache, node), "nothing is known of its Lease"
    await eventually(lambda: alive(cache, node), "its Lease was looked for")
    running.cancel()


async def test_an_api_server_that_is_away_makes_nobody_alive_who_was_not(
    source: ClusterSource, client: ApiClient, node: NodeName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.kube.nodes.POLL_SECONDS", 0.01)
    await heartbeat(client, node, "id").claim()
    await NodeReporter(client).report(node, NodeStatus(node_id="id"))
    now = 1000.0
    async with ApiClient(source) as ours:
        cache = NodeCache(ours, clock_seconds=lambda: now)
        await cache.refresh()
        now += 41
        await cache.refresh()
        assert not alive(cache, node)
    with structlog.testing.capture_logs() as logs:
        running = asyncio.create_task(cache.run())
        await eventually(lambda: any(line["event"] == "nodes_not_listed" for line in logs), "it was asked in vain")
        running.cancel()
    assert not alive(cache, node)


async def test_one_look_tells_how_long_an_agent_is_silent_by_the_servers_clock_alone(
    client: ApiClient, node: NodeName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.kube.clock.now_micro", lambda: "2020-01-01T00:00:00.000000Z")
    beat = NodeHeartbeat(client, node, NodeId("id"), duration=5.0)
    await beat.claim()

    async def pulse() -> Pulse:
        return (await read_pulses(client))[node]

    first = await pulse()
    assert first.alive
    assert first.silent_seconds is not None
    assert first.silent_seconds <= 5
    async with asyncio.timeout(30):
        while True:
            last = await pulse()
            if not last.alive:
                break
            await asyncio.sleep(0.2)
    assert last.silent_seconds is not None
    assert last.silent_seconds > 5
    await annotate(client, paths.lease(f"node-{node}"))
    assert not (await pulse()).alive, "what a person does with the Lease is no heartbeat"
    monkeypatch.setattr("perdure.kube.clock.now_micro", lambda: "2020-01-01T00:00:09.000000Z")
    await beat.beat()
    assert (await pulse()).alive


async def annotate(client: ApiClient, path: str) -> None:
    """As kubectl does, which the API server tells from an agent by the name that it writes under."""
    by_kubectl = f"{path}?fieldManager=kubectl-annotate"
    await client.merge_patch(by_kubectl, "annotating", {"metadata": {"annotations": {"note": "looked at"}}})


async def test_report_never_touches_what_people_set(client: ApiClient, node: NodeName) -> None:
    reporter = NodeReporter(client)
    await reporter.report(node, NodeStatus(node_id="id"))
    made = await client.get(paths.node(node), "reading the node")
    assert made["metadata"]["labels"]["kubernetes.io/hostname"] == node
    await client.merge_patch(
        paths.node(node),
        "cordoning",
        {"spec": {"unschedulable": True}, "metadata": {"labels": {"zone": "a"}, "annotations": {"note": "b"}}},
    )
    await reporter.report(node, NodeStatus(node_id="id", runtimes=3))
    await NodeReporter(client).report(node, NodeStatus(node_id="id", runtimes=4))
    now = await client.get(paths.node(node), "reading the node")
    assert now["spec"] == {"unschedulable": True}
    assert now["metadata"]["labels"]["zone"] == "a"
    assert now["metadata"]["annotations"] == {"note": "b"}
    assert now["status"]["runtimes"] == 4


async def test_same_report_is_no_write_and_a_deleted_node_comes_back(client: ApiClient, node: NodeName) -> None:
    now = 1000.0
    reporter = NodeReporter(client, clock_seconds=lambda: now)
    status = NodeStatus(node_id="id", runtimes=1)
    await reporter.report(node, status)
    before = await client.get(paths.node(node), "reading the node")
    await reporter.report(node, status)
    assert await client.get(paths.node(node), "reading the node") == before
    await client.delete(paths.node(node), "deleting the node", before["metadata"]["uid"])
    now += 61
    await reporter.report(node, status)
    assert (await client.get(paths.node(node), "reading the node"))["status"]["nodeID"] == "id"
