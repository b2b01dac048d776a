"""Fixtures that every test folder shares: the services of an environment, and places of a test's own within them.

A test that uses one of these is marked ``env`` (and ``root`` where it makes mounts or containers). It never skips for
want of them: it fails and says what to run.
"""

import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rig.containerd import cgroups_named, end_cgroup, unmount_below
from rig.environment import ENGINE_NAMESPACE
from rig.images import write_samples

ADVICE = 'run the tests with hack/test, or start services first: eval "$(hack/env up)"'
COMMAND_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Services:
    """Addresses of the environment that the tests run against, as ``hack/env up`` exports them."""

    kubeconfig: Path
    containerd_address: Path
    database_url: str
    state_directory: Path
    runc_root: Path
    cgroup_parent: str
    engine_namespace: str = ENGINE_NAMESPACE


class Kubectl:
    """Runs ``kubectl`` against the environment's API server, in one namespace or in none."""

    def __init__(self, kubeconfig: Path, namespace: str | None = None) -> None:
        self.kubeconfig = kubeconfig
        self.namespace = namespace

    def __call__(
        self, *arguments: str, stdin: str = "", check: bool = True, timeout: float = COMMAND_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run one command; fails the test with kubectl's own words unless ``check`` is False."""
        scope = ["--namespace", self.namespace] if self.namespace else []
        command = ["kubectl", f"--kubeconfig={self.kubeconfig}", *scope, *arguments]
        result = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
        if check and result.returncode != 0:
            pytest.fail(f"kubectl {' '.join(arguments)} ended with code {result.returncode}:\n{result.stderr}")
        return result

    def apply(self, *manifests: dict[str, Any]) -> None:
        """``kubectl apply`` objects given as dictionaries."""
        self("apply", "-f", "-", stdin="\n---\n".join(json.dumps(manifest) for manifest in manifests))

    def get(self, *arguments: str) -> Any:
        """The parsed JSON of ``kubectl get``."""
        return json.loads(self("get", *arguments, "-o", "json").stdout)


class Ctr:
    """Runs ``ctr`` against one engine, in one containerd namespace."""

    def __init__(self, address: Path, namespace: str) -> None:
        self.address = address
        self.namespace = namespace

    def __call__(self, *arguments: str, check: bool = True, timeout: float = COMMAND_SECONDS) -> str:
        """Run one command and return its stdout; fails the test with ctr's own words unless ``check`` is False."""
        command = ["ctr", "--address", str(self.address), "--namespace", self.namespace, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        if check and result.returncode != 0:
            pytest.fail(f"ctr {' '.join(arguments)} ended with code {result.returncode}:\n{result.stderr}")
        return result.stdout

    def names(self, *arguments: str) -> list[str]:
        """The first column of a listing command's rows, headings left out."""
        return [row.split()[0] for row in self(*arguments).splitlines()[1:] if row.strip()]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail, rather than skip, a test that cannot run here: a suite that ran nothing must not look green."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.fail("this test needs root; without root run: hack/test unit", pytrace=False)


@pytest.fixture(scope="session")
def env() -> Services:
    """The running environment."""
    try:
        return Services(
            kubeconfig=Path(os.environ["KUBECONFIG"]),
            containerd_address=Path(os.environ["PERDURE_CONTAINERD_ADDRESS"]),
            database_url=os.environ["PERDURE_DATABASE_URL"],
            state_directory=Path(os.environ["PERDURE_STATE_DIR"]),
            runc_root=Path(os.environ["PERDURE_RUNC_ROOT"]),
            cgroup_parent=os.environ["PERDURE_CGROUP_PARENT"],
        )
    except KeyError as error:
        pytest.fail(f"{error.args[0]} is not set; {ADVICE}", pytrace=False)


@pytest.fixture(scope="session")
def sample_images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """OCI archives of the sample images by image name, as a test imports them into an engine."""
    return write_samples(tmp_path_factory.mktemp("images"))


@pytest.fixture
def containerd_namespace(env: Services, sample_images: dict[str, Path]) -> Iterator[str]:
    """A containerd namespace of the test's own that knows the sample images; emptied and removed afterwards."""
    name = f"perdure-test-{uuid.uuid4().hex[:12]}"
    ctr = Ctr(env.containerd_address, name)
    for archive in sample_images.values():
        ctr("images", "import", "--snapshotter", "overlayfs", str(archive))
    yield name
    empty_containerd_namespace(ctr)
    for cgroup in cgroups_named(name):
        end_cgroup(cgroup)


@pytest.fixture
def ctr(env: Services, containerd_namespace: str) -> Ctr:
    """``ctr`` in the test's own containerd namespace."""
    return Ctr(env.containerd_address, containerd_namespace)


@pytest.fixture
def database_url(env: Services) -> Iterator[str]:
    """An empty database of the test's own, dropped afterwards whoever is connected to it."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(env.database_url, autocommit=True, connect_timeout=10) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    try:
        yield env.database_url.replace("/perdure?", f"/{name}?")
    finally:
        with psycopg.connect(env.database_url, autocommit=True, connect_timeout=10) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


@pytest.fixture
def kube_namespace(env: Services) -> Iterator[str]:
    """A Kubernetes namespace of the test's own; its objects are released from their finalizers and removed."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    cluster = Kubectl(env.kubeconfig)
    cluster("create", "namespace", name)
    yield name
    cluster("delete", "namespace", name, "--wait=false", check=False)
    release_finalizers(Kubectl(env.kubeconfig, name))
    cluster("wait", f"namespace/{name}", "--for=delete", "--timeout=60s")


@pytest.fixture
def kubectl(env: Services, kube_namespace: str) -> Kubectl:
    """``kubectl`` in the test's own namespace, as an administrator."""
    return Kubectl(env.kubeconfig, kube_namespace)


@pytest.fixture
def state_dir(env: Services) -> Iterator[Path]:
    """A state folder of the test's own on the engine's disk, with a path short enough for unix sockets."""
    parent = env.state_directory.parent / "t"
    parent.mkdir(exist_ok=True)
    path = Path(tempfile.mkdtemp(dir=parent, prefix=""))
    yield path
    unmount_below(path)
    shutil.rmtree(path)


def empty_containerd_namespace(ctr: Ctr) -> None:
    """Remove everything from a containerd namespace, running containers first, and the namespace itself."""
    for task in ctr.names("tasks", "ls"):
        ctr("tasks", "delete", "--force", task)
    for container in ctr.names("containers", "ls"):
        ctr("containers", "delete", container)
    for lease in ctr.names("leases", "ls"):
        ctr("leases", "delete", lease)
    remaining = ctr.names("snapshots", "--snapshotter", "overlayfs", "ls")
    while remaining:
        for snapshot in remaining:
            ctr("snapshots", "--snapshotter", "overlayfs", "rm", snapshot, check=False)
        left = ctr.names("snapshots", "--snapshotter", "overlayfs", "ls")
        if len(left) == len(remaining):
            pytest.fail(f"snapshots of containerd namespace {ctr.namespace} cannot be removed: {left}")
        remaining = left
    images = ctr("images", "ls", "-q").split()
    if images:
        ctr("images", "rm", "--sync", *images)
    for blob in ctr.names("content", "ls"):
        ctr("content", "rm", blob)
    ctr("namespaces", "rm", ctr.namespace)


def release_finalizers(kubectl: Kubectl) -> None:
    """Take the finalizers off every object of ours in a namespace: no controller is there to do it."""
    listed: Sequence[str] = kubectl(
        "api-resources", "--api-group=perdure.dev", "--namespaced", "--verbs=list,patch", "-o", "name"
    ).stdout.split()
    for resource in listed:
        for item in kubectl.get(resource)["items"]:
            name = item["metadata"]["name"]
            kubectl("patch", resource, name, "--type=merge", "-p", '{"metadata":{"finalizers":null}}', check=False)
