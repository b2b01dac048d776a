"""What the engine says and does when containerd is away, was robbed of a database, or was used by somebody else."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.engine_rig import IMAGE, EngineRig, archive, new_ref, workspace
from tests.contract.engine_rig_containerd import containerd_rig

from perdure.api.conditions import Reason
from perdure.api.names import RuntimeRef
from perdure.api.runtime import PullPolicy
from perdure.engine.containerd.errors import NotFound
from perdure.engine.containerd.messages import ContainerRecord
from perdure.engine.containerd.rpc import Connection
from perdure.engine.containerd.services import Services, expiry_label
from perdure.plan.certainty import Absent, Present, Unknown
from perdure.plan.world import TaskFacts, TaskState
from perdure.reconcile.ports.errors import EngineRefused, EngineUnavailable
from rig.clients import Ctr
from rig.clients import Services as Environment
from rig.containerd import Containerd
from rig.processes import wait_until

pytestmark = [pytest.mark.root, pytest.mark.env]


@pytest.fixture
async def services(env: Environment, containerd_namespace: str) -> AsyncIterator[Services]:
    """containerd's own calls, as a stranger in our namespace would make them."""
    connection = Connection(str(env.containerd_address), containerd_namespace)
    yield Services(connection, "overlayfs")
    await connection.close()


async def collect_garbage(services: Services) -> None:
    """A synchronous deletion of a lease is how a collection is asked for."""
    lease = f"collect-{uuid.uuid4().hex}"
    await services.create_lease(lease, expiry_label(3600))
    await services.delete_lease(lease)


# ---------------------------------------------------------------------------------------------- strangers and leftovers


async def test_a_second_writer_on_a_snapshot_is_refused(rig: EngineRig, services: Services, env: Environment) -> None:
    ref = new_ref()
    key = await rig.prepared(ref)
    await rig.engine.create_container(await rig.plan(ref, key))
    ours = await services.containers.get(ref.container_id)
    stranger = replace(ours, id="by-hand", labels={})
    await services.containers.create(stranger, None)
    await services.tasks.create("by-hand", await services.snapshots.mounts(key), "", str(env.runc_root))
    with pytest.raises(EngineRefused, match="by-hand") as caught:
        await rig.engine.start_task(ref.container_id, key)
    assert caught.value.reason is Reason.SNAPSHOT_CONFLICT
    with pytest.raises(EngineRefused):
        await rig.engine.layer(key)
    await services.tasks.kill("by-hand", signal.SIGKILL, everything=True)
    await services.tasks.wait("by-hand", 10)
    await services.tasks.delete("by-hand")
    assert (await rig.engine.start_task(ref.container_id, key)).state is TaskState.RUNNING


@contextlib.contextmanager
def mounted(options: Sequence[str]) -> Iterator[None]:
    """An overlay that somebody mounted by hand."""
    target = Path(tempfile.mkdtemp(prefix="perdure-test-"))
    subprocess.run(["mount", "-t", "overlay", "-o", ",".join(options), "overlay", target], check=True, timeout=20)
    try:
        yield
    finally:
        subprocess.run(["umount", target], check=True, timeout=20)
        target.rmdir()


async def test_a_writer_that_containerd_does_not_know_is_seen_too(rig: EngineRig, services: Services) -> None:
    ref = new_ref()
    key = await rig.prepared(ref)
    await rig.engine.create_container(await rig.plan(ref, key))
    mounts = await services.snapshots.mounts(key)
    with mounted(mounts[0].options):
        with pytest.raises(EngineRefused, match="mounted"):
            await rig.engine.start_task(ref.container_id, key)
        with pytest.raises(EngineRefused, match="mounted"):
            await rig.engine.layer(key)
    assert (await rig.engine.start_task(ref.container_id, key)).state is TaskState.RUNNING


async def test_a_strangers_record_keeps_the_workspace(rig: EngineRig, services: Services) -> None:
    ref = new_ref()
    key = await rig.prepared(ref)
    record = ContainerRecord("by-hand", {}, IMAGE, "overlayfs", key, b"{}", "io.containerd.runc.v2")
    await services.containers.create(record, None)
    with pytest.raises(EngineRefused, match="by-hand"):
        await rig.engine.remove_workspace(key)
    await services.containers.delete("by-hand")
    await rig.engine.remove_workspace(key)


async def test_a_task_that_was_made_but_never_started_is_made_again(
    rig: EngineRig, services: Services, env: Environment
) -> None:
    ref = new_ref()
    key = await rig.prepared(ref)
    await rig.engine.create_container(await rig.plan(ref, key))
    await services.tasks.create(ref.container_id, await services.snapshots.mounts(key), "", str(env.runc_root))
    assert (await rig.task(ref)).state is TaskState.CREATED
    assert (await rig.engine.start_task(ref.container_id, key)).state is TaskState.RUNNING
    await rig.ready(ref)


async def test_a_task_that_was_never_started_can_be_deleted(
    rig: EngineRig, services: Services, env: Environment
) -> None:
    ref = new_ref()
    key = await rig.prepared(ref)
    await rig.engine.create_container(await rig.plan(ref, key))
    await services.tasks.create(ref.container_id, await services.snapshots.mounts(key), "", str(env.runc_root))
    await rig.engine.delete_task(ref.container_id)
    assert (await rig.view(ref)).task == Absent()


async def test_a_task_whose_record_was_deleted_is_still_seen(rig: EngineRig, services: Services) -> None:
    ref = new_ref()
    key = await rig.running(ref)
    task = await rig.task(ref)
    await services.containers.delete(ref.container_id)
    await collect_garbage(services)
    view = await rig.view(ref, key)
    assert view.container == Absent()
    assert view.task == Present(task)
    with pytest.raises(EngineRefused):
        await rig.engine.remove_workspace(key)
    await rig.engine.create_container(await rig.plan(ref, key))
    assert (await rig.view(ref, key)).task == Present(task)


async def test_a_workspace_outlives_its_container_and_a_collection(rig: EngineRig, services: Services) -> None:
    ref = new_ref()
    key = await rig.running(ref)
    await rig.ready(ref)
    await rig.engine.signal_task(ref.container_id, "SIGTERM")
    await rig.ended(ref)
    await rig.engine.delete_task(ref.container_id)
    (await rig.engine.layer(key)).upper.joinpath("state").write_text("kept")
    await rig.engine.remove_container(ref.container_id)
    await collect_garbage(services)
    assert (await rig.engine.layer(key)).upper.joinpath("state").read_text() == "kept"


async def test_either_protection_alone_keeps_a_workspace(rig: EngineRig, services: Services) -> None:
    leased, labelled = new_ref(), new_ref()
    keys = [await rig.prepared(ref) for ref in (leased, labelled)]
    info = await services.snapshots.stat(keys[0])
    kept = {label: value for label, value in info.labels.items() if label != "containerd.io/gc.root"}
    await services.snapshots.replace_labels(keys[0], kept)
    await services.delete_lease(f"ws-{keys[1]}")
    await collect_garbage(services)
    for key in keys:
        assert (await rig.engine.layer(key)).upper.is_dir()
        await rig.engine.remove_workspace(key)


async def test_a_gate_that_cannot_be_read_is_not_open(rig: EngineRig, services: Services) -> None:
    ref = new_ref()
    key = await rig.prepared(ref, gate=archive(ref, 7))
    info = await services.snapshots.stat(key)
    await services.snapshots.replace_labels(key, {**info.labels, "perdure.dev/restore-pending": "soon"})
    assert isinstance((await rig.view(ref, key)).snapshots, Unknown)
    await rig.engine.create_container(await rig.plan(ref, key))
    with pytest.raises(EngineRefused):
        await rig.engine.start_task(ref.container_id, key)


async def test_an_image_that_was_never_unpacked_is_unpacked(
    rig: EngineRig, services: Services, ctr: Ctr, sample_images: dict[str, Path]
) -> None:
    name = "perdure.dev/samples/busybox:2"
    expected = (await rig.image(name)).chain_id
    ctr("images", "rm", "--sync", name)
    with pytest.raises(NotFound):
        await services.snapshots.stat(expected)
    ctr("images", "import", "--no-unpack", str(sample_images[name]))
    with pytest.raises(NotFound):
        await services.snapshots.stat(expected)
    found = await rig.engine.image(name)
    assert isinstance(found, Present)
    assert (await rig.engine.ensure_image(name, PullPolicy.NEVER)).chain_id == expected
    ref = new_ref()
    await rig.engine.prepare_workspace(ref, workspace(ref, found.it))
    await rig.engine.create_container(await rig.plan(ref, ref.snapshot_key(1), image=name))
    await rig.engine.start_task(ref.container_id, ref.snapshot_key(1))
    await rig.ready(ref)


# ---------------------------------------------------------------------------------------------- containerd itself


@pytest.fixture
def own_containerd(sample_images: dict[str, Path]) -> Iterator[Containerd]:
    """An engine of the test's own, to be killed and robbed. It has images in a namespace that is named as its cgroup."""
    short = Path(f"/run/pd-{uuid.uuid4().hex[:8]}")
    short.mkdir(mode=0o700)
    data = Path(tempfile.mkdtemp(prefix="perdure-test-"))
    engine = Containerd(data, short, f"/{short.name}")
    try:
        engine.start()
        engine.import_image(sample_images[IMAGE], short.name)
        yield engine
    finally:
        engine.stop()
        shutil.rmtree(short)
        shutil.rmtree(data)


def environment_of(engine: Containerd, env: Environment) -> Environment:
    return replace(
        env, containerd_address=engine.address, runc_root=engine.runc_root, cgroup_parent=engine.cgroup_parent
    )


@pytest.fixture
async def own_rig(own_containerd: Containerd, env: Environment, state_dir: Path) -> AsyncIterator[EngineRig]:
    namespace = own_containerd.cgroup_parent.strip("/")
    async with containerd_rig(environment_of(own_containerd, env), namespace, state_dir) as made:
        yield made


def kill(engine: Containerd) -> None:
    identity = engine.daemon.identity()
    assert identity is not None
    identity.send(signal.SIGKILL)
    wait_until(lambda: not identity.is_alive(), "containerd is dead", seconds=10)


async def test_a_dead_containerd_is_no_evidence_of_absence(own_rig: EngineRig, own_containerd: Containerd) -> None:
    rig, ref = own_rig, new_ref()
    key = await rig.running(ref)
    pid = (await rig.task(ref)).pid
    kill(own_containerd)
    for look_at in (None, key):
        view = await rig.view(ref, look_at)
        assert isinstance(view.container, Unknown)
        assert isinstance(view.task, Unknown)
        assert isinstance(view.snapshots, Unknown)
    assert isinstance(await rig.engine.inventory(), Unknown)
    assert isinstance(await rig.engine.image(IMAGE), Unknown)
    for call in (
        rig.engine.info(),
        rig.engine.ensure_image(IMAGE, PullPolicy.NEVER),
        rig.engine.start_task(ref.container_id, key),
        rig.engine.delete_task(ref.container_id),
        rig.engine.signal_task(ref.container_id, "SIGTERM"),
        rig.engine.wait_task(ref.container_id, 1),
        rig.engine.remove_container(ref.container_id),
        rig.engine.remove_workspace(key),
        rig.engine.layer(key),
    ):
        with pytest.raises(EngineUnavailable, match="containerd at"):
            await call
    own_containerd.start()
    wait_until(own_containerd.answers, "containerd answers", seconds=30)
    found = await seen_again(rig, ref)
    assert (found.state, found.pid) == (TaskState.RUNNING, pid)


async def seen_again(rig: EngineRig, ref: RuntimeRef) -> TaskFacts:
    """The task, once the same connection works again."""
    async with asyncio.timeout(20):
        while True:
            task = (await rig.view(ref)).task
            if isinstance(task, Present):
                return task.it
            assert isinstance(task, Unknown), task
            await asyncio.sleep(0.02)


async def test_events_end_when_containerd_dies(own_rig: EngineRig, own_containerd: Containerd) -> None:
    ref = new_ref()
    await own_rig.running(ref)
    stream = own_rig.engine.events()
    first = asyncio.ensure_future(anext(stream, None))
    await own_rig.engine.info()
    kill(own_containerd)
    assert await asyncio.wait_for(first, 30) is None


async def test_a_lost_snapshotter_database_is_no_evidence_of_absence(
    own_rig: EngineRig, own_containerd: Containerd
) -> None:
    rig, ref = own_rig, new_ref()
    key = await rig.prepared(ref)
    kill(own_containerd)
    (own_containerd.root / "io.containerd.snapshotter.v1.overlayfs" / "metadata.db").unlink()
    own_containerd.start()
    snapshots = (await rig.view(ref, key)).snapshots
    assert isinstance(snapshots, Unknown), snapshots
    with pytest.raises(EngineRefused):
        await rig.engine.remove_workspace(key)
