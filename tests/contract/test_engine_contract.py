"""What every `Engine` does: containerd itself, and whatever stands in for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.contract.engine_rig import (
    IMAGE,
    INSTALLATION,
    OTHER_IMAGE,
    OTHER_INSTALLATION,
    EngineRig,
    Program,
    archive,
    new_ref,
    workspace,
)
from tests.contract.engine_rig_containerd import containerd_rig
from tests.contract.engine_rig_fake import fake_rig

from perdure.api.conditions import Reason
from perdure.api.names import Kind
from perdure.api.runtime import PullPolicy, RuntimeSpec
from perdure.plan.certainty import Absent, Present
from perdure.plan.world import TaskState
from perdure.reconcile.ports.engine import EngineEvent
from perdure.reconcile.ports.errors import EngineRefused, SandboxFailed
from rig.clients import Services


@pytest.fixture(params=[pytest.param("containerd", marks=[pytest.mark.root, pytest.mark.env]), "fake"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EngineRig]:
    if request.param == "fake":
        yield fake_rig(tmp_path)
        return
    env: Services = request.getfixturevalue("env")
    namespace: str = request.getfixturevalue("containerd_namespace")
    async with containerd_rig(env, namespace, request.getfixturevalue("state_dir")) as made:
        yield made


@contextlib.contextmanager
def refused(reason: Reason, *, user_error: bool = False) -> Iterator[None]:
    with pytest.raises(EngineRefused) as caught:
        yield
    assert (caught.value.reason, caught.value.user_error) == (reason, user_error), caught.value
    assert len(str(caught.value)) > 20


async def test_it_says_what_it_is(rig: EngineRig) -> None:
    info = await rig.engine.info()
    assert info.name
    assert info.version


async def test_nothing_is_there_of_an_unknown_runtime(rig: EngineRig) -> None:
    ref = new_ref()
    for key in (None, ref.snapshot_key(1)):
        view = await rig.view(ref, key)
        assert (view.container, view.task, view.snapshots) == (Absent(), Absent(), Present(()))


# ---------------------------------------------------------------------------------------------- images


async def test_an_image_that_is_there_is_found_whole(rig: EngineRig) -> None:
    found = await rig.engine.image(IMAGE)
    assert isinstance(found, Present)
    assert found.it == await rig.image()
    assert found.it.name == IMAGE
    assert found.it.chain_id.startswith("sha256:")
    assert found.it.cmd[:2] == ("/bin/sh", "-c")


async def test_images_of_other_layers_have_other_chain_ids(rig: EngineRig) -> None:
    assert (await rig.image(IMAGE)).chain_id != (await rig.image(OTHER_IMAGE)).chain_id


async def test_an_image_that_is_not_there_is_absent(rig: EngineRig) -> None:
    assert await rig.engine.image("perdure.dev/samples/nothing:1") == Absent()


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (PullPolicy.NEVER, Reason.IMAGE_NOT_FOUND),
        (PullPolicy.IF_NOT_PRESENT, Reason.PULL_UNSUPPORTED),
        (PullPolicy.ALWAYS, Reason.PULL_UNSUPPORTED),
    ],
)
async def test_a_missing_image_is_refused_with_the_way_to_import_it(
    rig: EngineRig, policy: PullPolicy, reason: Reason
) -> None:
    with pytest.raises(EngineRefused, match="import") as caught:
        await rig.engine.ensure_image("perdure.dev/samples/nothing:1", policy)
    assert caught.value.reason is reason
    assert caught.value.user_error


async def test_what_names_no_image_is_absent_and_the_users_to_mend(rig: EngineRig) -> None:
    assert await rig.engine.image("No Image") == Absent()
    with refused(Reason.INVALID_SPEC, user_error=True):
        await rig.engine.ensure_image("No Image", PullPolicy.IF_NOT_PRESENT)


async def test_always_falls_back_to_the_copy_on_the_node(rig: EngineRig) -> None:
    assert await rig.engine.ensure_image(IMAGE, PullPolicy.ALWAYS) == await rig.image()


# ---------------------------------------------------------------------------------------------- workspaces


@pytest.mark.parametrize("kind", list(Kind))
async def test_a_prepared_workspace_is_seen_with_all_that_it_was_made_of(rig: EngineRig, kind: Kind) -> None:
    ref, image = new_ref(kind=kind), await rig.image()
    await rig.engine.prepare_workspace(ref, workspace(ref, image, n=4))
    for key in (None, ref.snapshot_key(4)):
        snapshots = (await rig.view(ref, key)).snapshots
        assert isinstance(snapshots, Present)
        (fact,) = snapshots.it
        assert (fact.key, fact.n, fact.chain_id) == (ref.snapshot_key(4), 4, image.chain_id)
        assert (fact.image, fact.image_digest, fact.gate) == (image.name, image.digest, None)


async def test_without_a_key_every_generation_is_seen_in_order(rig: EngineRig) -> None:
    ref = new_ref()
    for n in (2, 1):
        await rig.prepared(ref, n)
    await rig.prepared(new_ref())
    snapshots = (await rig.view(ref)).snapshots
    assert isinstance(snapshots, Present)
    assert [fact.n for fact in snapshots.it] == [1, 2]


async def test_preparing_again_changes_nothing(rig: EngineRig) -> None:
    ref = new_ref()
    key = await rig.prepared(ref, gate=archive(ref, 7))
    before = await rig.view(ref, key)
    await rig.prepared(ref, gate=archive(ref, 7))
    assert await rig.view(ref, key) == before


async def test_a_workspace_on_other_layers_is_a_conflict(rig: EngineRig) -> None:
    ref = new_ref()
    key = await rig.prepared(ref)
    before = await rig.view(ref, key)
    with refused(Reason.SNAPSHOT_CONFLICT):
        await rig.engine.prepare_workspace(ref, workspace(ref, await rig.image(OTHER_IMAGE)))
    assert await rig.view(ref, key) == before


async def test_the_gate_stays_shut_until_it_is_opened(rig: EngineRig) -> None:
    ref = new_ref()
    key = await rig.prepared(ref, gate=archive(ref, 7))
    await rig.engine.create_container(await rig.plan(ref, key))
    snapshots = (await rig.view(ref, key)).snapshots
    assert isinstance(snapshots, Present)
    assert snapshots.it[0].gate == 7
    with refused(Reason.RESTORE_PENDING):
        await rig.engine.start_task(ref.container_id, key)
    assert (await rig.view(ref)).task == Absent()
    for _ in range(2):
        await rig.engine.open_gate(key)
    snapshots = (await rig.view(ref, key)).snapshots
    assert isinstance(snapshots, Present)
    assert snapshots.it[0].gate is None
    assert (await rig.engine.start_task(ref.container_id, key)).state is TaskState.RUNNING


async def test_opening_the_gate_of_nothing_is_nothing(rig: EngineRig) -> None:
    await rig.engine.open_gate(new_ref().snapshot_key(1))


async def test_a_removed_workspace_is_gone_and_may_be_removed_again(rig: EngineRig) -> None:
    ref = new_ref()
    key = await rig.prepared(ref)
    for _ in range(2):
        await rig.engine.remove_workspace(key)
    assert (await rig.view(ref, key)).snapshots == Present(())


async def test_a_workspace_is_not_removed_while_a_container_refers_to_it(rig: EngineRig) -> None:
    ref = new_ref()
    key = await rig.prepared(ref)
    await rig.engine.create_container(await rig.plan(ref, key))
    before = (await rig.view(ref, key)).snapshots
    with refused(Reason.SNAPSHOT_CONFLICT):
        await rig.engine.remove_workspace(key)
    assert (await rig.view(ref, key)).snapshots == before


async def test_the_layer_of_an_idle_workspace_can_be_read(rig: EngineRig) -> None:
    ref = new_ref()
    key = await rig.prepared(ref)
    layer = await rig.engine.layer(key)
    assert layer.key == key
    assert layer.upper.is_dir()
    assert list(layer.upper.iterdir()) == []
    assert layer.staging_root.stat().st_mode & 0o7777 == 0o700
    assert layer.staging_root.stat().st_dev == layer.upper.stat().st_dev
    assert "snapshots" not in layer.staging_root.parts


async def test_what_is_written_to_a_layer_counts_as_its_usage(rig: EngineRig) -> None:
    ref = new_ref()
    key = await rig.prepared(ref)
    before = await rig.engine.usage(key)
    ((await rig.engine.layer(key)).upper / "state").write_bytes(b"x" * 1_000_000)
    assert 1_000_000 <= await rig.engine.usage(key) - before < 1_100_000
    with refused(Reason.DATA_MISSING):
        await rig.engine.usage(new_ref().snapshot_key(1))


async def test_the_layer_of_a_running_or_unreaped_task_is_refused(rig: EngineRig) -> None:
    ref = new_ref()
    key = await rig.running(ref)
    with refused(Reason.SNAPSHOT_CONFLICT):
        await rig.engine.layer(key)
    await rig.engine.signal_task(ref.container_id, "SIGKILL")
    await rig.ended(ref)
    with refused(Reason.SNAPSHOT_CONFLICT):
        await rig.engine.layer(key)
    await rig.engine.delete_task(ref.container_id)
    assert (await rig.engine.layer(key)).key == key


async def test_the_layer_of_nothing_is_refused(rig: EngineRig) -> None:
    with refused(Reason.DATA_MISSING):
        await rig.engine.layer(new_ref().snapshot_key(1))


# ---------------------------------------------------------------------------------------------- containers


async def test_a_created_container_is_seen_without_a_task(rig: EngineRig) -> None:
    ref = new_ref()
    key = await rig.prepared(ref)
    await rig.engine.create_container(await rig.plan(ref, key))
    view = await rig.view(ref, key)
    assert isinstance(view.container, Present)
    fact = view.container.it
    assert (fact.id, fact.snapshot_key, fact.spec_hash) == (ref.container_id, key, "hash-1")
    assert view.task == Absent()


async def test_an_idle_container_is_brought_to_a_newer_plan(rig: EngineRig) -> None:
    ref = new_ref()
    key = await rig.prepared(ref)
    await rig.engine.create_container(await rig.plan(ref, key))
    await rig.engine.create_container(await rig.plan(ref, key, Program.EXITS_3, spec_hash="hash-2"))
    container = (await rig.view(ref)).container
    assert isinstance(container, Present)
    assert container.it.spec_hash == "hash-2"
    await rig.engine.start_task(ref.container_id, key)
    exit_ = (await rig.ended(ref)).exit
    assert exit_ is not None
    assert exit_.code == 3


async def test_a_container_with_a_task_is_left_as_it_is(rig: EngineRig) -> None:
    ref = new_ref()
    key = await rig.running(ref)
    task = await rig.task(ref)
    await rig.engine.create_container(await rig.plan(ref, key))
    with refused(Reason.START_FAILED):
        await rig.engine.create_container(await rig.plan(ref, key, spec_hash="hash-2"))
    assert await rig.task(ref) == task


async def test_a_container_with_a_task_is_not_removed(rig: EngineRig) -> None:
    ref = new_ref()
    await rig.running(ref)
    with refused(Reason.STOP_TIMED_OUT):
        await rig.engine.remove_container(ref.container_id)
    assert (await rig.task(ref)).state is TaskState.RUNNING


async def test_a_removed_container_is_gone_and_its_workspace_stays(rig: EngineRig) -> None:
    ref = new_ref()
    key = await rig.prepared(ref)
    await rig.engine.create_container(await rig.plan(ref, key))
    before = (await rig.view(ref, key)).snapshots
    for _ in range(2):
        await rig.engine.remove_container(ref.container_id)
    view = await rig.view(ref, key)
    assert view.container == Absent()
    assert view.snapshots == before


async def test_no_command_anywhere_is_the_users_to_mend(rig: EngineRig) -> None:
    ref = new_ref()
    key = await rig.prepared(ref)
    plan = await rig.plan(ref, key, spec=RuntimeSpec(image=IMAGE, command=("",)))
    with refused(Reason.INVALID_SPEC, user_error=True):
        await rig.engine.create_container(plan)


async def test_an_unknown_user_is_the_users_to_mend(rig: EngineRig) -> None:
    ref = new_ref()
    key = await rig.prepared(ref)
    plan = await rig.plan(ref, key, spec=RuntimeSpec(image=IMAGE, user="nobody-such"))
    with refused(Reason.USER_NOT_FOUND, user_error=True):
        await rig.engine.create_container(plan)
    assert (await rig.view(ref)).container == Absent()


async def test_root_is_refused_where_the_namespace_is_restricted(rig: EngineRig) -> None:
    ref = new_ref()
    key = await rig.prepared(ref)
    with refused(Reason.POD_SECURITY, user_error=True):
        await rig.engine.create_container(await rig.plan(ref, key, restricted=True))
    spec = RuntimeSpec(image=IMAGE, user="app", command=("/bin/sh", "-c", "exit 3"))
    await rig.engine.create_container(await rig.plan(ref, key, spec=spec, restricted=True))
    await rig.engine.start_task(ref.container_id, key)
    exit_ = (await rig.ended(ref)).exit
    assert exit_ is not None
    assert exit_.code == 3


# ---------------------------------------------------------------------------------------------- tasks


async def test_a_started_task_runs_and_starting_it_again_is_nothing(rig: EngineRig) -> None:
    ref = new_ref()
    key = await rig.running(ref)
    task = await rig.task(ref)
    assert task.state is TaskState.RUNNING
    assert task.pid > 0
    assert (await rig.engine.start_task(ref.container_id, key)) == task


async def test_a_program_that_is_not_in_the_image_is_the_users_to_mend_and_leaves_nothing(rig: EngineRig) -> None:
    ref = new_ref()
    key = await rig.prepared(ref)
    await rig.engine.create_container(await rig.plan(ref, key, Program.MISSING))
    with refused(Reason.COMMAND_NOT_FOUND, user_error=True):
        await rig.engine.start_task(ref.container_id, key)
    assert (await rig.view(ref)).task == Absent()
    assert (await rig.engine.layer(key)).key == key
    await rig.engine.create_container(await rig.plan(ref, key, spec_hash="hash-2"))
    assert (await rig.engine.start_task(ref.container_id, key)).state is TaskState.RUNNING


async def test_what_is_to_happen_before_the_program_runs_happens_before_it_runs(rig: EngineRig) -> None:
    ref = new_ref()
    key = await rig.prepared(ref)
    await rig.engine.create_container(await rig.plan(ref, key))
    seen: list[TaskState | None] = []

    async def before_start() -> None:
        for _ in range(3):
            task = (await rig.view(ref)).task
            seen.append(task.it.state if isinstance(task, Present) else None)

    assert (await rig.engine.start_task(ref.container_id, key, before_start)).state is TaskState.RUNNING
    assert len(seen) == 3
    assert set(seen) <= {None, TaskState.CREATED}
    assert (await rig.task(ref)).state is TaskState.RUNNING


async def test_a_program_does_not_run_if_what_comes_before_it_failed_and_may_be_started_again(rig: EngineRig) -> None:
    ref = new_ref()
    key = await rig.prepared(ref)
    await rig.engine.create_container(await rig.plan(ref, key, Program.EXITS_3))

    async def fails() -> None:
        raise SandboxFailed("no address is left", reason=Reason.ADDRESS_POOL_EXHAUSTED)

    for _ in range(2):
        with pytest.raises(SandboxFailed, match="no address is left"):
            await rig.engine.start_task(ref.container_id, key, fails)
        view = await rig.view(ref)
        assert view.task == Absent()
        assert isinstance(view.container, Present)
        assert (await rig.engine.layer(key)).key == key
    await rig.engine.start_task(ref.container_id, key)
    exit_ = (await rig.ended(ref)).exit
    assert exit_ is not None
    assert exit_.code == 3


async def test_nothing_happens_before_the_start_of_what_runs_or_has_ended(rig: EngineRig) -> None:
    ref = new_ref()
    key = await rig.running(ref)
    task = await rig.task(ref)

    async def never() -> None:
        raise AssertionError("there is a task already")

    assert await rig.engine.start_task(ref.container_id, key, never) == task
    await rig.engine.signal_task(ref.container_id, "SIGKILL")
    ended = await rig.ended(ref)
    assert await rig.engine.start_task(ref.container_id, key, never) == ended


async def test_starting_without_a_container_is_refused(rig: EngineRig) -> None:
    ref = new_ref()
    key = await rig.prepared(ref)
    with refused(Reason.START_FAILED):
        await rig.engine.start_task(ref.container_id, key)


async def test_starting_on_another_snapshot_than_the_containers_is_refused(rig: EngineRig) -> None:
    ref = new_ref()
    key, other = await rig.prepared(ref, 1), await rig.prepared(ref, 2)
    await rig.engine.create_container(await rig.plan(ref, key))
    with refused(Reason.START_FAILED):
        await rig.engine.start_task(ref.container_id, other)


async def test_how_a_main_process_ended_is_seen_until_the_task_is_deleted(rig: EngineRig) -> None:
    ref = new_ref()
    key = await rig.running(ref, Program.EXITS_3)
    task = await rig.ended(ref)
    assert task.exit is not None
    assert (task.exit.code, task.exit.oom) == (3, False)
    assert task.exit.at > 1_000_000_000
    assert await rig.engine.start_task(ref.container_id, key) == task
    for _ in range(2):
        await rig.engine.delete_task(ref.container_id)
    view = await rig.view(ref)
    assert view.task == Absent()
    assert isinstance(view.container, Present)


async def test_a_task_may_be_started_again_after_its_end(rig: EngineRig) -> None:
    ref = new_ref()
    key = await rig.running(ref)
    await rig.ready(ref)
    await rig.engine.signal_task(ref.container_id, "SIGTERM")
    exit_ = (await rig.ended(ref)).exit
    assert exit_ is not None
    assert exit_.code == 0
    await rig.engine.delete_task(ref.container_id)
    assert (await rig.engine.start_task(ref.container_id, key)).state is TaskState.RUNNING


async def test_a_deaf_process_outlives_the_wait_and_dies_of_sigkill(rig: EngineRig) -> None:
    ref = new_ref()
    await rig.running(ref, Program.IGNORES_TERM)
    await rig.ready(ref)
    await rig.engine.signal_task(ref.container_id, "SIGTERM")
    assert not await rig.engine.wait_task(ref.container_id, 0.2)
    with refused(Reason.STOP_TIMED_OUT):
        await rig.engine.delete_task(ref.container_id)
    await rig.engine.signal_task(ref.container_id, "SIGKILL")
    exit_ = (await rig.ended(ref)).exit
    assert exit_ is not None
    assert exit_.code == 137


async def test_signals_and_waits_without_a_task_are_nothing(rig: EngineRig) -> None:
    ref = new_ref()
    container = ref.container_id
    await rig.engine.signal_task(container, "SIGTERM")
    assert await rig.engine.wait_task(container, 5)
    await rig.engine.delete_task(container)
    await rig.running(ref, Program.EXITS_3)
    await rig.ended(ref)
    await rig.engine.signal_task(container, "SIGKILL")
    assert await rig.engine.wait_task(container, 5)


async def test_an_unknown_signal_is_the_users_to_mend(rig: EngineRig) -> None:
    ref = new_ref()
    await rig.running(ref)
    with refused(Reason.INVALID_SPEC, user_error=True):
        await rig.engine.signal_task(ref.container_id, "SIGNOTHING")
    assert (await rig.task(ref)).state is TaskState.RUNNING


# ---------------------------------------------------------------------------------------------- all of ours


async def test_the_inventory_is_everything_of_this_installation_and_nothing_else(rig: EngineRig) -> None:
    running, idle, foreign = new_ref("running"), new_ref("idle", Kind.GAME), new_ref("foreign")
    key = await rig.running(running)
    await rig.prepared(idle, 1)
    await rig.prepared(idle, 2)
    other = rig.engine_for(OTHER_INSTALLATION)
    await other.prepare_workspace(foreign, workspace(foreign, await rig.image()))
    found = await rig.engine.inventory()
    assert isinstance(found, Present)
    by_ref = {owned.ref: owned for owned in found.it}
    assert set(by_ref) == {running, idle}
    assert by_ref[running].container is not None
    assert by_ref[running].task == await rig.task(running)
    assert [fact.key for fact in by_ref[running].snapshots] == [key]
    assert (by_ref[idle].container, by_ref[idle].task) == (None, None)
    assert [fact.n for fact in by_ref[idle].snapshots] == [1, 2]


async def test_strangers_are_what_carries_no_label_of_this_installation(rig: EngineRig) -> None:
    ours, foreign = new_ref("ours"), new_ref("foreign")
    await rig.running(ours)
    other = rig.engine_for(OTHER_INSTALLATION)
    assert await rig.engine.strangers() == Present(())
    key = foreign.snapshot_key(1)
    await other.prepare_workspace(foreign, workspace(foreign, await rig.image()))
    await other.create_container(await rig.plan(foreign, key))
    assert await rig.engine.strangers() == Present((f"container {foreign.container_id}", f"snapshot {key}"))
    assert await other.strangers() == Present((f"container {ours.container_id}", f"snapshot {ours.snapshot_key(1)}"))


async def test_another_installations_things_are_neither_seen_nor_touched(rig: EngineRig) -> None:
    ref, image = new_ref(), await rig.image()
    key = await rig.running(ref)
    other = rig.engine_for(OTHER_INSTALLATION)
    view = await other.observe(ref, key)
    assert (view.container, view.task, view.snapshots) == (Absent(), Absent(), Present(()))
    with refused(Reason.SNAPSHOT_CONFLICT):
        await other.prepare_workspace(ref, workspace(ref, image))
    with refused(Reason.SNAPSHOT_CONFLICT):
        await other.remove_workspace(key)
    with refused(Reason.SNAPSHOT_CONFLICT):
        await other.layer(key)
    with refused(Reason.SNAPSHOT_CONFLICT):
        await other.open_gate(key)
    with refused(Reason.SNAPSHOT_CONFLICT):
        await other.start_task(ref.container_id, key)
    with refused(Reason.SNAPSHOT_CONFLICT):
        await other.remove_container(ref.container_id)
    same = rig.engine_for(INSTALLATION)
    assert await same.observe(ref, key) == await rig.view(ref, key)


async def test_events_name_the_runtime_whose_task_changed(rig: EngineRig) -> None:
    ref = new_ref()
    key = await rig.prepared(ref)
    await rig.engine.create_container(await rig.plan(ref, key, Program.EXITS_3))
    seen: list[EngineEvent] = []
    over = asyncio.Event()

    async def listen() -> None:
        async for event in rig.engine.events():
            seen.append(event)
            if event.topic == "/tasks/exit" and event.uid == ref.uid:
                over.set()

    listener = asyncio.create_task(listen())
    try:
        # Nobody confirms a subscription: runs are repeated until one of them is heard.
        async with asyncio.timeout(30):
            while not over.is_set():
                await rig.engine.start_task(ref.container_id, key)
                await rig.ended(ref)
                await rig.engine.delete_task(ref.container_id)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), 1)
    finally:
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)
    assert {event.uid for event in seen} == {ref.uid}
    assert all(event.topic.startswith("/tasks/") for event in seen)
