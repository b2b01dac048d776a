"""The intake against a real API server: what users do is seen, and kopf's ways do not reach our own tasks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.fakes.background import beside
from tests.integration.kube.conftest import User, eventually

from perdure.api.names import LABEL_NODE_ID, Kind, NodeId, NodeName, Uid
from perdure.api.node import NodeStatus, RuntimeNode
from perdure.api.runtime import DesiredState, Runtime
from perdure.kube import paths
from perdure.kube.access import ClusterSource
from perdure.kube.client import ApiClient
from perdure.kube.cluster import node_selector
from perdure.kube.intake import Intake, node_watch, runtime_watches
from perdure.kube.nodes import NodeReporter

pytestmark = pytest.mark.env


class Seen:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.newest: dict[Uid, Runtime] = {}
        self.deletions: list[Runtime] = []

    def put(self, runtime: Runtime) -> None:
        self.newest[runtime.uid] = runtime

    def deleted(self, runtime: Runtime) -> None:
        self.deletions.append(runtime)

    def state(self, uid: Uid) -> DesiredState | None:
        return self.newest[uid].spec.desired_state if uid in self.newest else None


@asynccontextmanager
async def running(intake: Intake) -> AsyncIterator[None]:
    async with beside(intake.run()):
        yield


async def test_creation_change_and_deletion_are_seen(
    client: ApiClient, source: ClusterSource, user: User, kind: Kind
) -> None:
    seen = Seen()
    before = await user.create("before", kind)
    async with running(Intake(client, source, "test", runtime_watches(seen))):
        await eventually(lambda: before.uid in seen.newest, "an object that was there before is seen")
        after = await user.create("after", kind)
        await eventually(lambda: after.uid in seen.newest, "a new object is seen")
        await user.edit(after, desiredState="Stopped")
        await eventually(lambda: seen.state(after.uid) is DesiredState.STOPPED, "a change is seen")
        await user.delete(after)
        await eventually(lambda: after.uid in {gone.uid for gone in seen.deletions}, "a deletion is seen")
    assert seen.newest[before.uid].kind is kind


async def test_agent_sees_only_what_carries_its_label_and_leaving_is_a_hint(
    client: ApiClient, source: ClusterSource, user: User
) -> None:
    seen = Seen()
    node_id = NodeId(f"id-{user.namespace}")
    mine = await user.create("mine")
    other = await user.create("other")
    async with running(Intake(client, source, "agent", runtime_watches(seen, node_selector(node_id)))):
        await user.label(mine, **{LABEL_NODE_ID: node_id})
        await eventually(lambda: mine.uid in seen.newest, "an object that gets the label is seen")
        await user.label(mine, **{LABEL_NODE_ID: None})
        await eventually(lambda: [gone.uid for gone in seen.deletions] == [mine.uid], "leaving is hinted at")
    assert other.uid not in seen.newest
    assert (await user.read(mine)).uid == mine.uid


async def test_agent_sees_its_own_node_alone(client: ApiClient, source: ClusterSource, user: User) -> None:
    mine, other = NodeName(f"mine-{user.namespace}"), NodeName(f"other-{user.namespace}")
    reporter = NodeReporter(client)
    await reporter.report(other, NodeStatus(node_id=NodeId("2")))
    shown: list[RuntimeNode] = []
    async with running(Intake(client, source, "agent", [node_watch(shown.append, mine)])):
        await reporter.report(mine, NodeStatus(node_id=NodeId("1")))
        await eventually(lambda: any(node.node_id == "1" for node in shown), "its own report is seen")
        await reporter.report(other, NodeStatus(node_id=NodeId("2"), runtimes=1))
        await reporter.report(mine, NodeStatus(node_id=NodeId("1"), runtimes=2))
        await eventually(lambda: shown[-1].status.runtimes == 2, "a change is seen")
    assert {node.name for node in shown} == {mine}
    for name in (mine, other):
        uid = (await client.get(paths.node(name), f"reading {name}"))["metadata"]["uid"]
        await client.delete(paths.node(name), f"deleting {name}", uid)


async def test_tasks_made_after_the_start_outlive_the_intake(
    client: ApiClient, source: ClusterSource, user: User
) -> None:
    seen = Seen()
    runtime = await user.create("one")
    async with running(Intake(client, source, "test", runtime_watches(seen))):
        await eventually(lambda: runtime.uid in seen.newest, "the intake works")
        ours = asyncio.create_task(asyncio.Event().wait())
    assert not ours.done()
    assert not ours.cancelling()
    ours.cancel()


async def test_object_of_anybody_is_left_without_annotations_and_finalizers(
    client: ApiClient, source: ClusterSource, user: User
) -> None:
    seen = Seen()
    runtime = await user.create("one")
    await user.patch(runtime, {"metadata": {"finalizers": ["example.org/keep"]}})
    async with running(Intake(client, source, "test", runtime_watches(seen))):
        await eventually(lambda: runtime.uid in seen.newest, "the object is seen")
        await user.edit(runtime, desiredState="Stopped")
        await eventually(lambda: seen.state(runtime.uid) is DesiredState.STOPPED, "and its change")
    now = await user.read(runtime)
    assert now.finalizers == ("example.org/keep",)
    assert not [name for name in now.annotations if "kopf" in name]
