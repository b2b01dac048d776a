"""The intake, the resync and the cache while the API server crashes, forgets and comes back."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import uvloop
from tests.integration.kube.conftest import User, eventually
from tests.integration.kube.control_plane import make, start
from tests.integration.kube.test_intake import Seen, running

from perdure.api.names import Kind, Uid
from perdure.api.runtime import DesiredState
from perdure.kube.access import ClusterSource
from perdure.kube.cache import RuntimeCache
from perdure.kube.client import ApiClient
from perdure.kube.intake import Intake, LoopFactory, runtime_watches
from perdure.kube.objects import KubeControllerCluster
from perdure.kube.preflight import NotInstalled, require_crds
from perdure.kube.resync import Resync, ResyncReport
from perdure.reconcile.ports.errors import ApiUnavailable
from perdure.telemetry.metrics import Metrics
from rig.clients import Kubectl
from rig.controlplane import ControlPlane
from rig.paths import CHECKOUT

pytestmark = pytest.mark.env


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One that may be killed."""
    plane = make(tmp_path_factory.mktemp("killed"))
    try:
        start(plane)
        yield plane
    finally:
        plane.stop()


async def test_crashed_api_server_is_waited_for_and_nothing_is_said_to_be_gone(
    control_plane: ControlPlane, client: ApiClient, source: ClusterSource, user: User
) -> None:
    seen = Seen()
    runtime = await user.create("bot")
    async with running(Intake(client, source, "test", runtime_watches(seen))):
        await eventually(lambda: runtime.uid in seen.newest, "the object is seen")
        await asyncio.to_thread(control_plane.apiserver.kill)
        with pytest.raises(ApiUnavailable):
            await user.read(runtime)
        await asyncio.to_thread(control_plane.apiserver.start)
        await asyncio.to_thread(control_plane.apiserver.wait_ready)
        await user.edit(runtime, desiredState="Stopped")
        await eventually(lambda: seen.state(runtime.uid) is DesiredState.STOPPED, "a later change is seen", 60)
    assert seen.deletions == []


async def test_intake_that_starts_before_the_api_server_waits_for_it(
    control_plane: ControlPlane, client: ApiClient, source: ClusterSource, user: User
) -> None:
    seen = Seen()
    runtime = await user.create("bot")
    await asyncio.to_thread(control_plane.apiserver.kill)
    intake = Intake(client, source, "test", runtime_watches(seen))
    async with running(intake):
        await eventually(lambda: intake.restarts > 1, "it has tried")
        await asyncio.to_thread(control_plane.apiserver.start)
        await asyncio.to_thread(control_plane.apiserver.wait_ready)
        await eventually(lambda: runtime.uid in seen.newest, "the object is seen", 60)


@pytest.mark.parametrize("loop", [None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
async def test_intake_leaves_no_connection_to_a_server_that_answers_nothing(
    control_plane: ControlPlane, client: ApiClient, source: ClusterSource, user: User, loop: LoopFactory | None
) -> None:
    seen = Seen()
    runtime = await user.create("bot")
    before = sockets()
    server = control_plane.apiserver.identity()
    assert server is not None
    try:
        async with running(Intake(client, source, "test", runtime_watches(seen), loop)):
            await eventually(lambda: runtime.uid in seen.newest, "the object is seen")
            assert sockets() - before
            server.send(signal.SIGSTOP)
        assert sockets() <= before
    finally:
        server.send(signal.SIGCONT)


def sockets() -> set[str]:
    """The inodes of this process's TCP connections over IPv4."""
    connections = {line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]}
    mine: set[str] = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them
            mine.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
    return mine & connections


async def test_missing_crds_are_named_and_waited_for(
    control_plane: ControlPlane, client: ApiClient, source: ClusterSource, cluster: KubeControllerCluster, user: User
) -> None:
    kubectl = Kubectl(control_plane.admin_kubeconfig)
    await require_crds(client)
    await asyncio.to_thread(kubectl, "delete", "-f", str(CHECKOUT / "crds"))
    seen = Seen()
    intake = Intake(client, source, "test", runtime_watches(seen))
    try:
        with pytest.raises(NotInstalled, match=r"botruntimes\.perdure\.dev.*kubectl apply -f crds/"):
            await until_not_installed(client)
        with pytest.raises(ApiUnavailable):
            await cluster.list_uids(Kind.BOT)
        async with running(intake):
            await eventually(lambda: intake.restarts > 1, "it has looked for them")
            await asyncio.to_thread(start, control_plane)
            runtime = await user.create("bot")
            await eventually(lambda: runtime.uid in seen.newest, "the object is seen", 60)
    finally:
        await asyncio.to_thread(start, control_plane)


async def until_not_installed(client: ApiClient) -> None:
    """For a moment the server still names our group and no longer serves it: that proves nothing yet."""
    for _ in range(1000):
        try:
            await require_crds(client)
        except ApiUnavailable:
            continue


def keep_in(reports: list[ResyncReport]) -> Callable[[ResyncReport], Awaitable[None]]:
    async def keep(report: ResyncReport) -> None:
        reports.append(report)

    return keep


async def test_resync_finds_what_no_watch_told(cluster: KubeControllerCluster, user: User, metrics: Metrics) -> None:
    reports: list[ResyncReport] = []
    woken: list[Uid] = []
    cache = RuntimeCache(woken.append)
    resync = Resync(cluster, cache, metrics, keep_in(reports))
    bot, game = await user.create("bot"), await user.create("game", Kind.GAME)
    assert await resync.once() == ResyncReport(missing=frozenset(), known=0, listed=2)
    await user.edit(bot, desiredState="Stopped")
    await user.delete(game)
    woken.clear()
    assert await resync.once() == ResyncReport(missing=frozenset({game.uid}), known=2, listed=1)
    assert sorted(woken) == sorted([bot.uid, game.uid])
    changed = cache.get(bot.uid)
    assert changed is not None
    assert changed.spec.desired_state is DesiredState.STOPPED
    assert cache.get(game.uid) is None
    differences = metrics.relist_differences.labels(kind="GameRuntime", difference="missed_delete")
    assert differences._value.get() == 1
    assert await resync.once() == ResyncReport(missing=frozenset(), known=1, listed=1)
    assert len(reports) == 3


async def test_list_that_cannot_be_read_is_no_absence(
    control_plane: ControlPlane, cluster: KubeControllerCluster, user: User, metrics: Metrics
) -> None:
    reports: list[ResyncReport] = []
    cache = RuntimeCache()
    runtime = await user.create("bot")
    resync = Resync(cluster, cache, metrics, keep_in(reports))
    await resync.once()
    await asyncio.to_thread(control_plane.apiserver.kill)
    try:
        with pytest.raises(ApiUnavailable):
            await resync.once()
        assert len(reports) == 1
        assert cache.get(runtime.uid) == runtime
    finally:
        await asyncio.to_thread(control_plane.apiserver.start)
        await asyncio.to_thread(control_plane.apiserver.wait_ready)


async def test_kubeconfig_of_a_server_that_is_gone_is_named(tmp_path: Path, source: ClusterSource) -> None:
    assert source.kubeconfig is not None
    path = tmp_path / "kubeconfig"
    path.write_text(source.kubeconfig.read_text().replace("https://127.0.0.1", "https://127.0.0.2"))
    async with ApiClient(ClusterSource(path)) as client:
        with pytest.raises(ApiUnavailable, match=r"https://127\.0\.0\.2"):
            await require_crds(client)
