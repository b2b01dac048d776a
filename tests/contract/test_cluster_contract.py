"""What every `Cluster` and `ControllerCluster` does: the one on a real API server and the fake of the crash matrix."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Protocol

import msgspec
import pytest
from tests.fakes.cluster import ClusterState, FakeCluster
from tests.integration.kube.control_plane import control_plane

from perdure.api.archive import object_name
from perdure.api.conditions import ConditionType, Reason, Truth
from perdure.api.names import (
    ANNOTATION_HOST_PORTS,
    API_VERSION,
    FINALIZER,
    LABEL_NAMESPACE_UID,
    LABEL_NODE,
    LABEL_NODE_ID,
    ChainId,
    Kind,
    NamespaceUid,
    NodeId,
    NodeName,
    SnapshotKey,
    Uid,
)
from perdure.api.node import NodeAmounts, NodeStatus, parse_node
from perdure.api.phases import Phase
from perdure.api.runtime import Condition, DesiredState, LastExit, Runtime, RuntimeSpec, RuntimeStatus, parse_runtime
from perdure.kube import paths
from perdure.kube.access import ClusterSource
from perdure.kube.client import ApiClient, ApiRefused
from perdure.kube.cluster import ENFORCE_LABEL, KubeCluster
from perdure.kube.objects import KubeControllerCluster
from perdure.plan.certainty import Absent, Present, Unknown
from perdure.plan.world import ArchiveFacts
from perdure.reconcile.ports.cluster import Cluster, ControllerCluster, Published
from perdure.reconcile.ports.errors import ApiUnavailable, SourceError, StatusConflict
from perdure.telemetry.metrics import new_metrics
from rig.controlplane import ControlPlane

__all__ = ["control_plane"]

IMAGE = "perdure.dev/samples/busybox:1"
NODE, NODE_ID = NodeName("node-a"), NodeId(f"id-{uuid.uuid4()}")
BINDING = NamespaceUid("namespace-uid")


class World(Protocol):
    """A cluster with a namespace in it, and what people do there."""

    namespace: str
    node: NodeName
    agent: Cluster
    """In whose scope is what carries the label of `NODE_ID`."""
    controller: ControllerCluster
    unreachable: Cluster

    async def create(self, name: str, kind: Kind = Kind.BOT) -> Runtime: ...

    async def stop(self, runtime: Runtime) -> Runtime: ...

    async def delete(self, runtime: Runtime) -> None: ...

    async def read(self, runtime: Runtime) -> Runtime | None: ...

    async def put_finalizer(self, runtime: Runtime, name: str) -> Runtime: ...

    async def create_sources(self) -> None:
        """A Secret `s` with `key` = bytes that are no text, a ConfigMap `c` with `key` = `value`."""

    async def terminate_namespace(self) -> None: ...

    async def archive_names(self) -> set[str]: ...

    async def node_status(self) -> NodeStatus | None:
        """Of the RuntimeNode `node`."""


class FakeWorld:
    def __init__(self) -> None:
        self.namespace = "ns"
        self.node = NodeName("node-of-a-test")
        self.state = ClusterState()
        self.state.create_namespace("ns", enforce="restricted")
        self.agent: Cluster = FakeCluster(self.state, NODE_ID)
        self.controller: ControllerCluster = FakeCluster(self.state)
        self.unreachable: Cluster = FakeCluster(ClusterState(away="it is away"))

    async def create(self, name: str, kind: Kind = Kind.BOT) -> Runtime:
        return self.state.create(kind, self.namespace, name, RuntimeSpec(image=IMAGE))

    async def stop(self, runtime: Runtime) -> Runtime:
        spec = msgspec.structs.replace(runtime.spec, desired_state=DesiredState.STOPPED)
        return self.state.edit(runtime.kind, runtime.namespace, runtime.name, spec)

    async def delete(self, runtime: Runtime) -> None:
        self.state.delete(runtime.kind, runtime.namespace, runtime.name)

    async def read(self, runtime: Runtime) -> Runtime | None:
        return self.state.runtimes.get((runtime.kind, runtime.namespace, runtime.name))

    async def put_finalizer(self, runtime: Runtime, name: str) -> Runtime:
        return self.state.change(runtime, finalizers=(*runtime.finalizers, name))

    async def create_sources(self) -> None:
        self.state.secrets[self.namespace, "s"] = {"key": b"\xff\x00"}
        self.state.config_maps[self.namespace, "c"] = {"key": "value"}

    async def terminate_namespace(self) -> None:
        self.state.terminate_namespace(self.namespace)

    async def archive_names(self) -> set[str]:
        return {name for namespace, name in self.state.archives if namespace == self.namespace}

    async def node_status(self) -> NodeStatus | None:
        return self.state.nodes.get(self.node)


class RealWorld:
    def __init__(self, client: ApiClient, away: ApiClient) -> None:
        self.namespace = f"test-{uuid.uuid4().hex[:12]}"
        self.node = NodeName(self.namespace)
        self._client = client
        metrics = new_metrics()
        self.agent: Cluster = KubeCluster(client, metrics, host="here", node_id=NODE_ID)
        self.controller: ControllerCluster = KubeControllerCluster(
            client, metrics, host="here", node_name=lambda node_id: NODE if node_id == NODE_ID else None
        )
        self.unreachable: Cluster = KubeCluster(away, metrics, host="here", node_id=NODE_ID)

    async def open(self) -> None:
        labels = {ENFORCE_LABEL: "restricted"}
        metadata = {"name": self.namespace, "labels": labels}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        await self._client.post(paths.namespaces(), "creating a namespace", body)

    async def close(self) -> None:
        for kind in Kind:
            for raw in await self._in_namespace(kind.plural):
                await self._patch(parse_runtime(raw), {"metadata": {"finalizers": None}})
        async for page in self._client.pages(paths.nodes(), "listing nodes"):
            for raw in page:
                if raw["metadata"]["name"] == self.node:
                    await self._client.delete(paths.node(self.node), "deleting the node", raw["metadata"]["uid"])
        await self._delete_namespace()

    async def create(self, name: str, kind: Kind = Kind.BOT) -> Runtime:
        body = {
            "apiVersion": API_VERSION,
            "kind": kind.value,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"image": IMAGE},
        }
        path = paths.runtime(kind, self.namespace, name).rpartition("/")[0]
        return parse_runtime(await self._client.post(path, "creating a runtime", body))

    async def stop(self, runtime: Runtime) -> Runtime:
        return await self._patch(runtime, {"spec": {"desiredState": "Stopped"}})

    async def delete(self, runtime: Runtime) -> None:
        await self._client.delete(self._path(runtime), "deleting a runtime", runtime.uid)

    async def read(self, runtime: Runtime) -> Runtime | None:
        try:
            return parse_runtime(await self._client.get(self._path(runtime), "reading a runtime"))
        except ApiRefused as refused:
            if refused.code == 404:
                return None
            raise

    async def put_finalizer(self, runtime: Runtime, name: str) -> Runtime:
        return await self._patch(runtime, {"metadata": {"finalizers": [*runtime.finalizers, name]}})

    async def create_sources(self) -> None:
        for kind, plural, name, data in (
            ("Secret", "secrets", "s", {"key": base64.b64encode(b"\xff\x00").decode()}),
            ("ConfigMap", "configmaps", "c", {"key": "value"}),
        ):
            body = {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "data": data}
            await self._client.post(f"/api/v1/namespaces/{self.namespace}/{plural}", f"creating a {kind}", body)

    async def terminate_namespace(self) -> None:
        # Something with a finalizer keeps the namespace from going before the test has looked.
        anchor = await self.create("anchor")
        await self.put_finalizer(anchor, "example.org/keep")
        await self._delete_namespace()

    async def _delete_namespace(self) -> None:
        namespace = await self._client.get(paths.namespace(self.namespace), "reading the namespace")
        await self._client.delete(
            paths.namespace(self.namespace), "deleting the namespace", namespace["metadata"]["uid"]
        )

    async def archive_names(self) -> set[str]:
        return {raw["metadata"]["name"] for raw in await self._in_namespace("runtimearchives")}

    async def node_status(self) -> NodeStatus | None:
        return parse_node(await self._client.get(paths.node(self.node), "reading the node")).status

    async def _in_namespace(self, plural: str) -> list[dict[str, Any]]:
        path = f"{paths.DISCOVERY}/namespaces/{self.namespace}/{plural}"
        return [raw async for page in self._client.pages(path, f"listing {plural}") for raw in page]

    def _path(self, runtime: Runtime) -> str:
        return paths.runtime(runtime.kind, runtime.namespace, runtime.name)

    async def _patch(self, runtime: Runtime, patch: dict[str, Any]) -> Runtime:
        return parse_runtime(await self._client.merge_patch(self._path(runtime), "changing a runtime", patch))


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.env)])
async def world(request: pytest.FixtureRequest, tmp_path: Any) -> AsyncIterator[World]:
    if request.param == "fake":
        yield FakeWorld()
        return
    nowhere = tmp_path / "kubeconfig"
    nowhere.write_text(
        "{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],"
        " clusters: [{name: c, cluster: {server: 'http://127.0.0.1:9'}}], users: [{name: u, user: {}}]}"
    )
    plane: ControlPlane = request.getfixturevalue("control_plane")
    source = ClusterSource(plane.admin_kubeconfig)
    async with ApiClient(source) as client, ApiClient(ClusterSource(nowhere)) as away:
        real = RealWorld(client, away)
        await real.open()
        yield real
        await real.close()


def facts(world: World) -> ArchiveFacts:
    return facts_of(world.namespace)


def facts_of(namespace: str) -> ArchiveFacts:
    return ArchiveFacts(
        sequence=7,
        kind=Kind.BOT,
        namespace=namespace,
        name="bot",
        uid=Uid("uid-of-bot"),
        store="default",
        node_id=NODE_ID,
        snapshot_key=SnapshotKey("br-uid-of-bot-1"),
        image=IMAGE,
        image_digest="sha256:1",
        chain_id=ChainId("sha256:2"),
        sha256="ab" * 32,
        bytes=1000,
        entries=3,
        uncompressed_bytes=5000,
        empty=False,
    )


def ready(status: Truth, message: str = "", reason: Reason = Reason.RUNNING) -> RuntimeStatus:
    condition = Condition(type=ConditionType.READY.value, status=status.value, reason=reason.value, message=message)
    return RuntimeStatus(phase=Phase.RUNNING.value, observed_generation=1, conditions=(condition,))


# ---------------------------------------------------------------------------------------------- reading


async def test_installation_is_the_same_each_time(world: World) -> None:
    first = await world.agent.installation()
    assert first
    assert await world.agent.installation() == first


async def test_namespace_has_its_uid_and_what_it_enforces(world: World) -> None:
    namespace = await world.agent.namespace(world.namespace)
    assert namespace.uid
    assert namespace.enforce == "restricted"
    assert not namespace.terminating
    assert await world.controller.get_namespace(world.namespace) == namespace


async def test_namespace_that_is_not_there_is_said_to_be_so(world: World) -> None:
    with pytest.raises(SourceError) as caught:
        await world.agent.namespace("nowhere")
    assert caught.value.reason is Reason.NAMESPACE_UNREADABLE
    assert await world.controller.get_namespace("nowhere") is None


async def test_terminating_namespace_says_so(world: World) -> None:
    await world.terminate_namespace()
    assert (await world.agent.namespace(world.namespace)).terminating


async def test_secret_is_bytes_and_config_map_is_text(world: World) -> None:
    await world.create_sources()
    assert await world.agent.secret(world.namespace, "s") == {"key": b"\xff\x00"}
    assert await world.agent.config_map(world.namespace, "c") == {"key": "value"}


async def test_missing_sources_are_the_users_to_make(world: World) -> None:
    for reading in (world.agent.secret(world.namespace, "s"), world.agent.config_map(world.namespace, "c")):
        with pytest.raises(SourceError) as caught:
            await reading
        assert caught.value.reason is Reason.ENV_SOURCE_MISSING
        assert caught.value.user_error


async def test_look_up_tells_one_life_from_the_next(world: World) -> None:
    first = await world.create("bot")
    assert await world.agent.look_up(first.ref(BINDING)) == Present(first)
    await world.delete(first)
    assert await world.agent.look_up(first.ref(BINDING)) == Absent()
    second = await world.create("bot")
    assert await world.agent.look_up(first.ref(BINDING)) == Absent()
    assert await world.agent.look_up(second.ref(BINDING)) == Present(second)


async def test_agents_list_is_what_is_bound_to_its_node(world: World) -> None:
    mine = await world.controller.bind(await world.create("mine"), NODE, NODE_ID, BINDING)
    await world.create("unbound")
    await world.controller.bind(await world.create("other"), NODE, NodeId("other"), BINDING)
    await world.controller.bind(await world.create("game", Kind.GAME), NODE, NODE_ID, BINDING)
    found = await world.agent.list_uids(Kind.BOT)
    assert [runtime for runtime in found.values() if runtime.namespace == world.namespace] == [mine]
    assert found[mine.uid] == mine


# ---------------------------------------------------------------------------------------------- status


async def test_status_is_stored_and_returned(world: World) -> None:
    runtime = await world.create("bot")
    written = await world.agent.write_status(runtime, ready(Truth.TRUE, "it runs"))
    assert written == await world.read(runtime)
    assert written.status.phase == "Running"
    (condition,) = written.status.conditions
    assert (condition.type, condition.status, condition.message) == ("Ready", "True", "it runs")
    assert condition.last_transition_time


async def test_same_status_again_is_no_write(world: World) -> None:
    runtime = await world.create("bot")
    written = await world.agent.write_status(runtime, ready(Truth.TRUE))
    assert await world.agent.write_status(written, ready(Truth.TRUE)) is written
    assert await world.read(runtime) == written


async def test_transition_time_stays_while_the_status_of_a_condition_does(world: World) -> None:
    runtime = await world.create("bot")
    first = await world.agent.write_status(runtime, ready(Truth.FALSE, "one", Reason.IN_PROGRESS))
    second = await world.agent.write_status(first, ready(Truth.FALSE, "two", Reason.START_FAILED))
    assert second.status.conditions[0].message == "two"
    assert second.status.conditions[0].last_transition_time == first.status.conditions[0].last_transition_time


async def test_what_is_no_longer_said_goes_from_the_status(world: World) -> None:
    runtime = await world.create("bot")
    before = RuntimeStatus(
        phase="Stopped",
        restarts=3,
        stopped_at="2026-01-01T00:00:00Z",
        last_exit=LastExit(code=1, signal=9, reason="Error"),
    )
    after = RuntimeStatus(phase="Running", last_exit=LastExit(code=0, reason="Completed"))
    written = await world.agent.write_status(await world.agent.write_status(runtime, before), after)
    assert written.status == after
    assert (await world.read(runtime)) == written


async def test_status_of_an_edited_object_is_written_and_the_edit_comes_back(world: World) -> None:
    seen = await world.create("bot")
    await world.stop(seen)
    written = await world.agent.write_status(seen, ready(Truth.TRUE))
    assert written.spec.desired_state is DesiredState.STOPPED
    assert written.status.phase == "Running"


async def test_status_of_a_life_that_is_over_is_refused(world: World) -> None:
    first = await world.create("bot")
    await world.delete(first)
    with pytest.raises(StatusConflict):
        await world.agent.write_status(first, ready(Truth.TRUE))


async def test_status_never_reaches_the_next_life_of_a_name(world: World) -> None:
    first = await world.create("bot")
    await world.delete(first)
    second = await world.create("bot")
    with pytest.raises(StatusConflict):
        await world.agent.write_status(first, ready(Truth.TRUE))
    assert await world.read(second) == second


async def test_status_of_a_terminating_object_is_written(world: World) -> None:
    runtime = await world.controller.bind(await world.create("bot"), NODE, NODE_ID, BINDING)
    await world.delete(runtime)
    written = await world.agent.write_status(runtime, ready(Truth.FALSE))
    assert written.terminating
    assert written.status.conditions[0].status == "False"


# ---------------------------------------------------------------------------------------------- binding


async def test_binding_is_a_finalizer_and_three_labels(world: World) -> None:
    bound = await world.controller.bind(await world.create("bot"), NODE, NODE_ID, BINDING)
    assert bound.protected
    assert (bound.node_name, bound.node_id, bound.namespace_uid) == (NODE, NODE_ID, BINDING)
    assert await world.read(bound) == bound


async def test_binding_again_is_no_write(world: World) -> None:
    bound = await world.controller.bind(await world.create("bot"), NODE, NODE_ID, BINDING)
    assert await world.controller.bind(bound, NODE, NODE_ID, BINDING) == bound
    assert await world.read(bound) == bound


async def test_binding_brings_the_ports_and_takes_them_away(world: World) -> None:
    runtime = await world.create("bot")
    bound = await world.controller.bind(runtime, NODE, NODE_ID, BINDING, {"b": 7001, "a": 7000})
    assert bound.host_ports == {"a": 7000, "b": 7001}
    assert bound.generation == runtime.generation
    assert await world.controller.bind(bound, NODE, NODE_ID, BINDING, {"a": 7000, "b": 7001}) == bound
    moved = await world.controller.bind(bound, NODE, NODE_ID, BINDING, {"a": 7002})
    assert moved.host_ports == {"a": 7002}
    without = await world.controller.bind(moved, NODE, NODE_ID, BINDING)
    assert ANNOTATION_HOST_PORTS not in without.annotations
    assert await world.read(without) == without


async def test_binding_keeps_finalizers_of_others(world: World) -> None:
    runtime = await world.put_finalizer(await world.create("bot"), "example.org/keep")
    bound = await world.controller.bind(runtime, NODE, NODE_ID, BINDING)
    assert set(bound.finalizers) == {"example.org/keep", FINALIZER}


async def test_binding_decided_on_an_old_version_is_refused(world: World) -> None:
    seen = await world.create("bot")
    await world.put_finalizer(seen, "example.org/keep")
    with pytest.raises(StatusConflict):
        await world.controller.bind(seen, NODE, NODE_ID, BINDING)
    now = await world.read(seen)
    assert now is not None
    assert now.finalizers == ("example.org/keep",)
    assert not {LABEL_NODE, LABEL_NODE_ID, LABEL_NAMESPACE_UID} & now.labels.keys()


async def test_what_is_gone_or_going_unprotected_is_not_bound(world: World) -> None:
    gone = await world.create("gone")
    await world.delete(gone)
    with pytest.raises(StatusConflict):
        await world.controller.bind(gone, NODE, NODE_ID, BINDING)
    seen = await world.put_finalizer(await world.create("going"), "example.org/keep")
    await world.delete(seen)
    going = await world.read(seen)
    assert going is not None
    for version in (seen, going):
        with pytest.raises(StatusConflict):
            await world.controller.bind(version, NODE, NODE_ID, BINDING)


async def test_lost_labels_of_a_terminating_object_are_published_again(world: World) -> None:
    runtime = await world.put_finalizer(await world.create("bot"), FINALIZER)
    await world.delete(runtime)
    terminating = await world.read(runtime)
    assert terminating is not None
    bound = await world.controller.bind(terminating, NODE, NODE_ID, BINDING)
    assert bound.node_id == NODE_ID
    assert bound.terminating


async def test_released_object_goes(world: World) -> None:
    bound = await world.controller.bind(await world.create("bot"), NODE, NODE_ID, BINDING)
    await world.delete(bound)
    await world.controller.release(bound)
    assert await world.read(bound) is None
    await world.controller.release(bound)


async def test_release_takes_only_our_finalizer_and_only_from_this_life(world: World) -> None:
    bound = await world.controller.bind(
        await world.put_finalizer(await world.create("bot"), "example.org/keep"), NODE, NODE_ID, BINDING
    )
    await world.controller.release(bound)
    now = await world.read(bound)
    assert now is not None
    assert now.finalizers == ("example.org/keep",)
    earlier = msgspec.structs.replace(bound, uid=Uid("an-earlier-life"))
    again = await world.controller.bind(now, NODE, NODE_ID, BINDING)
    await world.controller.release(earlier)
    assert await world.read(again) == again


# ---------------------------------------------------------------------------------------------- archives


async def test_archive_is_listed_once_and_taken_down(world: World) -> None:
    archive = facts(world)
    name = object_name(archive.kind, archive.name, archive.sequence)
    assert await world.controller.publish_archive(archive) is Published.DONE
    assert await world.controller.publish_archive(archive) is Published.DONE
    assert await world.archive_names() == {name}
    await world.controller.unpublish_archive(archive)
    await world.controller.unpublish_archive(archive)
    assert await world.archive_names() == set()


async def test_object_that_lists_another_archive_is_left_alone(world: World) -> None:
    archive = facts(world)
    other = replace(archive, uid=Uid("another-life"))
    await world.controller.publish_archive(archive)
    with pytest.raises(StatusConflict):
        await world.controller.publish_archive(other)
    await world.controller.unpublish_archive(other)
    assert await world.archive_names() == {object_name(archive.kind, archive.name, archive.sequence)}


async def test_namespace_that_goes_or_is_gone_takes_no_archive(world: World) -> None:
    elsewhere = replace(facts(world), namespace="nowhere")
    assert await world.controller.publish_archive(elsewhere) is Published.NAMESPACE_GONE
    await world.terminate_namespace()
    assert await world.controller.publish_archive(facts(world)) is Published.NAMESPACE_GONE
    await world.controller.unpublish_archive(facts(world))


# ---------------------------------------------------------------------------------------------- the rest


async def test_nobody_is_told_that_something_is_gone_while_the_api_is_away(world: World) -> None:
    runtime = await world.create("bot")
    api = world.unreachable
    assert isinstance(await api.look_up(runtime.ref(BINDING)), Unknown)
    for asking in (
        api.installation(),
        api.namespace(world.namespace),
        api.secret(world.namespace, "s"),
        api.config_map(world.namespace, "c"),
        api.list_uids(Kind.BOT),
        api.write_status(runtime, ready(Truth.TRUE)),
        api.report_node(NODE, NodeStatus(node_id=NODE_ID)),
    ):
        with pytest.raises(ApiUnavailable):
            await asking
    await api.emit(runtime, reason="Start", message="it runs", warning=False)


async def test_event_is_best_effort_and_changes_nothing(world: World) -> None:
    runtime = await world.create("bot")
    for _ in range(2):
        await world.agent.emit(runtime, reason="Start", message="it runs", warning=False)
    assert await world.read(runtime) == runtime


async def test_node_is_what_its_last_report_says(world: World) -> None:
    status = NodeStatus(node_id=NODE_ID, engine="containerd", capacity=NodeAmounts(cpu=2, memory="1Gi"), runtimes=3)
    for _ in range(2):
        await world.agent.report_node(world.node, status)
        assert await world.node_status() == status
    later = NodeStatus(node_id=NODE_ID, engine="containerd")
    await world.agent.report_node(world.node, later)
    assert await world.node_status() == later


async def test_many_writers_of_one_object_lose_nothing(world: World) -> None:
    seen = await world.create("bot")
    bound, written = await asyncio.gather(
        world.controller.bind(seen, NODE, NODE_ID, BINDING),
        world.agent.write_status(seen, ready(Truth.TRUE)),
        return_exceptions=True,
    )
    assert isinstance(written, Runtime)
    assert isinstance(bound, Runtime | StatusConflict)
    now = await world.read(seen)
    assert now is not None
    assert now.status.phase == "Running"
    assert now.protected == isinstance(bound, Runtime)
