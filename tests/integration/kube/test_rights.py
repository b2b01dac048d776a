"""`deploy/rbac/` is enough for what the processes do, and no more. As their ServiceAccounts, on a real API server."""

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import yaml
from tests.contract.test_cluster_contract import facts_of
from tests.integration.kube.conftest import User, eventually
from tests.integration.kube.test_intake import Seen, running

from perdure.api.conditions import Reason
from perdure.api.names import Kind, NamespaceUid, NodeId, NodeName
from perdure.api.node import NodeStatus, RuntimeNode
from perdure.api.runtime import RuntimeStatus
from perdure.kube import paths
from perdure.kube.access import ClusterSource
from perdure.kube.client import ApiClient, ApiRefused
from perdure.kube.cluster import KubeCluster, node_selector
from perdure.kube.heartbeat import NodeHeartbeat
from perdure.kube.intake import Intake, node_watch, runtime_watches
from perdure.kube.lease import LeaderLease
from perdure.kube.nodes import NodeCache
from perdure.kube.objects import KubeControllerCluster
from perdure.kube.preflight import ensure_namespace, require_crds
from perdure.plan.certainty import Present
from perdure.reconcile.ports.cluster import Published
from perdure.reconcile.ports.errors import ApiUnavailable, SourceError
from perdure.telemetry.metrics import Metrics
from rig.clients import Kubectl
from rig.controlplane import ControlPlane
from rig.paths import CHECKOUT

pytestmark = pytest.mark.env

NODE, NODE_ID = NodeName("node-rights"), NodeId("id-rights")
BINDING = NamespaceUid("namespace-uid")
As = Callable[[str], AbstractAsyncContextManager[ApiClient]]


@pytest.fixture
def source_of(control_plane: ControlPlane, tmp_path: Path) -> Callable[[str], ClusterSource]:
    """A kubeconfig with a token of a ServiceAccount of ours, after the folder was applied as people apply it."""
    kubectl = Kubectl(control_plane.admin_kubeconfig)
    kubectl("apply", "-f", str(CHECKOUT / "deploy" / "rbac"))

    def source(account: str) -> ClusterSource:
        token = kubectl("create", "token", account, "--namespace=perdure-system").strip()
        content = json.loads(control_plane.admin_kubeconfig.read_text())
        content["users"][0]["user"] = {"token": token}
        path = tmp_path / account
        path.write_text(json.dumps(content))
        return ClusterSource(path)

    return source


@pytest.fixture
def as_account(source_of: Callable[[str], ClusterSource]) -> As:
    @asynccontextmanager
    async def connect(account: str) -> AsyncIterator[ApiClient]:
        async with ApiClient(await asyncio.to_thread(source_of, account)) as client:
            yield client

    return connect


async def test_agent_may_do_its_work(
    as_account: As,
    source_of: Callable[[str], ClusterSource],
    user: User,
    cluster: KubeControllerCluster,
    metrics: Metrics,
) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"k": "v"}}
    await user.client.post(f"/api/v1/namespaces/{user.namespace}/secrets", "creating a Secret", secret)
    runtime = await cluster.bind(await user.create("bot"), NODE, NODE_ID, BINDING)
    async with as_account("perdure-agent") as client:
        await require_crds(client)
        await ensure_namespace(client)
        agent = KubeCluster(client, metrics, host="here", node_id=NODE_ID)
        assert await agent.installation()
        assert (await agent.namespace(user.namespace)).uid
        assert await agent.secret(user.namespace, "s") == {"k": b"v"}
        assert await agent.look_up(runtime.ref(BINDING)) == Present(runtime)
        assert set(await agent.list_uids(Kind.BOT)) == {runtime.uid}
        written = await agent.write_status(runtime, RuntimeStatus(phase="Running"))
        assert written.status.phase == "Running"
        await agent.emit(written, reason="Start", message="it runs", warning=False)
        await agent.emit(written, reason="Start", message="it runs", warning=False)
        await agent.report_node(NODE, NodeStatus(node_id=NODE_ID))
        heartbeat = NodeHeartbeat(client, NODE, NODE_ID)
        await heartbeat.claim()
        await heartbeat.beat()
        seen = Seen()
        source = await asyncio.to_thread(source_of, "perdure-agent")
        nodes: list[RuntimeNode] = []
        watches = (*runtime_watches(seen, node_selector(NODE_ID)), node_watch(nodes.append, NODE))
        async with running(Intake(client, source, "agent", watches)):
            await eventually(lambda: runtime.uid in seen.newest, "the agent's watch works")
            await eventually(lambda: bool(nodes), "also that of its node")
    assert metrics.events_lost._value.get() == 0


@pytest.mark.parametrize("part", ["agent", "controller"])
@pytest.mark.usefixtures("source_of")
def test_printed_kubeconfig_is_that_of_the_account(part: str, control_plane: ControlPlane, tmp_path: Path) -> None:
    printing: list[str] = [str(CHECKOUT / "deploy" / "kubeconfig"), part, "1"]
    environment = {"PATH": os.environ["PATH"], "KUBECONFIG": str(control_plane.admin_kubeconfig)}
    printed = subprocess.run(printing, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout
    assert len(yaml.safe_load(printed)["users"]) == 1
    path = tmp_path / "printed"
    path.write_text(printed)
    whoami = json.loads(Kubectl(path)("auth", "whoami", "-o", "json"))
    assert whoami["status"]["userInfo"]["username"] == f"system:serviceaccount:perdure-system:perdure-{part}"


async def test_agent_cannot_move_a_binding_nor_read_secrets_in_bulk(as_account: As, user: User) -> None:
    runtime = await user.create("bot")
    path = paths.runtime(runtime.kind, runtime.namespace, runtime.name)
    async with as_account("perdure-agent") as client:
        for attempt in (
            client.merge_patch(path, "moving", {"metadata": {"labels": {"perdure.dev/node-id": "mine"}}}),
            client.delete(path, "deleting", runtime.uid),
            client.get(f"/api/v1/namespaces/{user.namespace}/secrets", "listing Secrets"),
            client.delete(paths.node(NODE), "deleting a node", "uid"),
        ):
            with pytest.raises(ApiRefused) as caught:
                await attempt
            assert caught.value.code == 403


async def test_agent_that_may_not_read_secrets_says_which_right_is_missing(
    as_account: As, user: User, control_plane: ControlPlane, metrics: Metrics
) -> None:
    kubectl = Kubectl(control_plane.admin_kubeconfig)
    async with as_account("perdure-agent") as client:
        await asyncio.to_thread(kubectl, "delete", "clusterrolebinding", "perdure-agent-env")
        agent = KubeCluster(client, metrics, host="here", node_id=NODE_ID)
        with pytest.raises(SourceError, match=f"right get on secrets in namespace {user.namespace}") as caught:
            await until_forbidden(agent, user.namespace)
    assert caught.value.reason is Reason.ENV_SOURCE_FORBIDDEN
    assert not caught.value.user_error


async def until_forbidden(agent: KubeCluster, namespace: str) -> None:
    """The API server's authorizer learns of the deleted binding through a watch of its own."""
    for _ in range(1000):
        try:
            await agent.secret(namespace, "s")
        except SourceError as error:
            if error.reason is Reason.ENV_SOURCE_FORBIDDEN:
                raise


async def test_controller_may_do_its_work(as_account: As, user: User, metrics: Metrics) -> None:
    async with as_account("perdure-controller") as client:
        await require_crds(client)
        await ensure_namespace(client)
        controller = KubeControllerCluster(client, metrics, host="here", node_name=lambda node_id: NODE)
        leading = LeaderLease(client, "controller-of-a-test")
        assert await leading.acquire() >= 1
        await leading.release()
        await NodeCache(client).refresh()
        namespace = await controller.get_namespace(user.namespace)
        assert namespace is not None
        bound = await controller.bind(await user.create("bot"), NODE, NODE_ID, namespace.uid)
        bound = await controller.write_status(bound, RuntimeStatus(phase="Pending"))
        assert bound.uid in await controller.list_uids(Kind.BOT)
        archive = facts_of(user.namespace)
        assert await controller.publish_archive(archive) is Published.DONE
        listed = await user.client.get(paths.archive(user.namespace, "br-bot-7"), "reading the archive")
        assert (listed["status"]["phase"], listed["status"]["nodeName"]) == ("Verified", NODE)
        await controller.unpublish_archive(archive)
        await controller.release(bound)


async def test_controller_cannot_read_secrets(as_account: As, user: User, metrics: Metrics) -> None:
    async with as_account("perdure-controller") as client:
        controller = KubeControllerCluster(client, metrics, host="here", node_name=lambda node_id: None)
        with pytest.raises(SourceError) as caught:
            await controller.secret(user.namespace, "s")
        assert caught.value.reason is Reason.ENV_SOURCE_FORBIDDEN


async def test_account_without_rights_is_told_and_concludes_nothing(
    as_account: As, user: User, metrics: Metrics
) -> None:
    async with as_account("default") as client:
        agent = KubeCluster(client, metrics, host="here", node_id=NODE_ID)
        with pytest.raises(ApiUnavailable, match="403"):
            await agent.list_uids(Kind.BOT)


@pytest.mark.usefixtures("source_of")
@pytest.mark.parametrize(
    ("roles", "may", "may_not"),
    [
        (
            ("perdure-view",),
            ("list botruntimes", "watch gameruntimes", "get runtimearchives"),
            ("create botruntimes", "patch runtimearchives", "list runtimenodes"),
        ),
        (
            ("perdure-view", "perdure-edit"),
            ("create botruntimes", "delete gameruntimes", "patch runtimearchives", "list runtimearchives"),
            ("patch botruntimes/status", "create runtimearchives", "delete runtimearchives", "update runtimebindings"),
        ),
    ],
    ids=["view", "edit"],
)
async def test_people_may_do_what_their_role_in_the_namespace_says(
    roles: tuple[str, ...], may: tuple[str, ...], may_not: tuple[str, ...], user: User, control_plane: ControlPlane
) -> None:
    person, within = f"person-of-{user.namespace}", ("--namespace", user.namespace)
    kubectl = Kubectl(control_plane.admin_kubeconfig)

    def answer(right: str) -> str:
        verb, resource = right.split()
        resource, _, subresource = resource.partition("/")
        asked = [verb, f"{resource}.perdure.dev", *([f"--subresource={subresource}"] if subresource else [])]
        return kubectl.attempt("auth", "can-i", *asked, f"--as={person}", *within).stdout.strip()

    for role in roles:
        binding = ("create", "rolebinding", role, f"--clusterrole={role}", f"--user={person}")
        await asyncio.to_thread(kubectl, *binding, *within)
    for right in may:
        await eventually(partial(_is_granted, answer, right), f"a person may {right}")
    for right in may_not:
        assert await asyncio.to_thread(answer, right) == "no", right


def _is_granted(answer: Callable[[str], str], right: str) -> bool:
    return answer(right) == "yes"
