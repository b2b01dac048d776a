"""Fixtures that every test folder shares: the services of an environment, and places of a test's own within them.

A test that uses one of these is marked ``env`` (and ``root`` where it makes mounts or containers). It never skips for
want of them: it fails and says what to run.
"""

import asyncio
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import structlog
from hypothesis import HealthCheck, settings

from rig.clients import Ctr, Kubectl, Services
from rig.containerd import cgroups_named, end_cgroup, unmount_below
from rig.images import write_samples

ADVICE = 'run the tests with hack/test, or start services first: eval "$(hack/env up)"'

# The same examples every time, or many new ones (`HYPOTHESIS_PROFILE=thorough`); how long one takes is no test's business.
settings.register_profile(
    "steady",
    derandomize=True,
    max_examples=500,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("thorough", max_examples=20_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


def pytest_configure(config: pytest.Config) -> None:
    """Say that the main thread has no event loop: else asyncio makes one when pytest-asyncio asks, and nobody closes it.

    The warning about that loop then fails whichever test the collector runs in (Python 3.11, asyncio/events.py).
    """
    asyncio.set_event_loop(None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail, rather than skip, a test that cannot run here: a suite that ran nothing must not look green."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.fail("this test needs root; without root run: hack/test unit", pytrace=False)


@pytest.fixture(autouse=True)
def _logging_stays_as_it_was() -> Iterator[None]:
    """Commands and processes configure logging for good: what one test set up must not silence the next."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def env() -> Services:
    """The running environment."""
    try:
        return Services.from_variables()
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
        ctr.import_image(archive)
    yield name
    ctr.remove_namespace()
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
    Kubectl(env.kubeconfig, name).delete_objects()
    cluster("delete", "namespace", name, "--wait=false")  # Kubernetes itself takes five seconds for the rest of it


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
