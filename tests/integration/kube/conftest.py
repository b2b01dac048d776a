"""What the tests of `perdure.kube` share: a client of the environment's API server, and runtimes made with kubectl."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from perdure.api.names import API_VERSION, Kind, NamespaceUid, NodeId, NodeName
from perdure.api.runtime import Runtime
from perdure.kube.access import ClusterSource
from perdure.kube.client import ApiClient
from perdure.kube.objects import KubeControllerCluster
from perdure.kube.runtimes import RuntimeObjects
from perdure.telemetry.metrics import Metrics, new_metrics
from tests.conftest import Kubectl, Services

IMAGE = "perdure.dev/samples/busybox:1"
WAIT_SECONDS = 20.0


async def eventually(condition: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Wait for a condition that something else on this loop brings about."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"not so after {seconds:.0f} s: {what}")


def manifest(name: str, kind: Kind = Kind.BOT, **spec: Any) -> dict[str, Any]:
    """A runtime as a user would write it."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind.value,
        "metadata": {"name": name},
        "spec": {"image": IMAGE, **spec},
    }


@pytest.fixture
def source(env: Services) -> ClusterSource:
    return ClusterSource(env.kubeconfig)


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
def kind(request: pytest.FixtureRequest) -> Iterator[Kind]:
    yield request.param


class User:
    """What a person does with kubectl, and what they see of it."""

    def __init__(self, kubectl: Kubectl, client: ApiClient) -> None:
        self.kubectl = kubectl
        assert kubectl.namespace is not None
        self.namespace = kubectl.namespace
        self._objects = RuntimeObjects(client)

    async def apply(self, name: str, kind: Kind = Kind.BOT, **spec: Any) -> Runtime:
        await asyncio.to_thread(self.kubectl.apply, manifest(name, kind, **spec))
        return await self.read(name, kind)

    async def run(self, *arguments: str) -> str:
        return await asyncio.to_thread(self.kubectl, *arguments)

    async def read(self, name: str, kind: Kind = Kind.BOT) -> Runtime:
        found = await self._objects.read(kind, self.namespace, name)
        assert found is not None
        return found

    async def is_gone(self, name: str, kind: Kind = Kind.BOT) -> bool:
        return await self._objects.read(kind, self.namespace, name) is None


@pytest.fixture
def user(kubectl: Kubectl, client: ApiClient) -> User:
    return User(kubectl, client)


NODE = NodeName("node-a")
NODE_ID = NodeId("node-a-id")
NAMESPACE_UID = NamespaceUid("namespace-uid")
