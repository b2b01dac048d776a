"""What the tests of `perdure.kube` share: clients of a real API server, and a user who makes and changes runtimes."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from tests.integration.kube.control_plane import control_plane

from perdure.api.names import API_VERSION, ARCHIVE_PLURAL, Kind, NodeName
from perdure.api.runtime import Runtime, parse_runtime
from perdure.kube import paths
from perdure.kube.access import ClusterSource
from perdure.kube.client import ApiClient, ApiRefused
from perdure.kube.objects import KubeControllerCluster
from perdure.telemetry.metrics import Metrics, new_metrics
from rig.controlplane import ControlPlane

__all__ = ["control_plane"]

IMAGE = "perdure.dev/samples/busybox:1"
WAIT_SECONDS = 30.0
POLL_SECONDS = 0.01


async def eventually(condition: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Wait for a condition that something else on this loop brings about."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            pytest.fail(f"not so after {seconds:.0f} s: {what}")
        await asyncio.sleep(POLL_SECONDS)


@pytest.fixture
def source(control_plane: ControlPlane) -> ClusterSource:
    return ClusterSource(control_plane.admin_kubeconfig)


@pytest.fixture
async def client(source: ClusterSource) -> AsyncIterator[ApiClient]:
    async with ApiClient(source) as client:
        yield client


@pytest.fixture
def metrics() -> Metrics:
    return new_metrics()


@pytest.fixture
def cluster(client: ApiClient, metrics: Metrics) -> KubeControllerCluster:
    return KubeControllerCluster(client, metrics, host="here", node_name=lambda node_id: NodeName(f"name-of-{node_id}"))


@pytest.fixture(params=list(Kind), ids=[kind.short for kind in Kind])
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


class User:
    """What a person does in one namespace."""

    def __init__(self, client: ApiClient, namespace: str) -> None:
        self.client = client
        self.namespace = namespace

    async def create(self, name: str, kind: Kind = Kind.BOT, **spec: Any) -> Runtime:
        body = {
            "apiVersion": API_VERSION,
            "kind": kind.value,
            "metadata": {"name": name},
            "spec": {"image": IMAGE, **spec},
        }
        path = paths.runtime(kind, self.namespace, name).rpartition("/")[0]
        return parse_runtime(await self.client.post(path, f"creating {name}", body))

    async def patch(self, runtime: Runtime, body: dict[str, Any]) -> Runtime:
        path = paths.runtime(runtime.kind, runtime.namespace, runtime.name)
        return parse_runtime(await self.client.merge_patch(path, f"changing {runtime.key}", body))

    async def edit(self, runtime: Runtime, **spec: Any) -> Runtime:
        return await self.patch(runtime, {"spec": spec})

    async def label(self, runtime: Runtime, **labels: str | None) -> Runtime:
        return await self.patch(runtime, {"metadata": {"labels": labels}})

    async def delete(self, runtime: Runtime) -> None:
        path = paths.runtime(runtime.kind, runtime.namespace, runtime.name)
        await self.client.delete(path, f"deleting {runtime.key}", runtime.uid)

    async def read(self, runtime: Runtime) -> Runtime:
        path = paths.runtime(runtime.kind, runtime.namespace, runtime.name)
        return parse_runtime(await self.client.get(path, f"reading {runtime.key}"))

    async def remove_everything(self) -> None:
        """Also what has finalizers."""
        for plural in (*(kind.plural for kind in Kind), ARCHIVE_PLURAL):
            folder = f"{paths.DISCOVERY}/namespaces/{self.namespace}/{plural}"
            async for page in self.client.pages(folder, f"listing {plural}"):
                for raw in page:
                    await self._remove(f"{folder}/{raw['metadata']['name']}", raw)

    async def _remove(self, path: str, raw: dict[str, Any]) -> None:
        try:
            if raw["metadata"].get("finalizers"):
                await self.client.merge_patch(path, "taking finalizers off", {"metadata": {"finalizers": None}})
            await self.client.delete(path, "deleting", raw["metadata"]["uid"])
        except ApiRefused as refused:
            if refused.code != 404:
                raise


@pytest.fixture
async def user(client: ApiClient) -> AsyncIterator[User]:
    """In a namespace of the test's own, which is emptied afterwards."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    namespace = await client.post(paths.namespaces(), f"creating namespace {name}", body)
    user = User(client, name)
    yield user
    await user.remove_everything()
    await client.delete(paths.namespace(name), f"deleting namespace {name}", namespace["metadata"]["uid"])
