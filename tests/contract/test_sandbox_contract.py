"""What every `Sandbox` does, the fake too: loopback alone now, networks later. What the kernel shows of it is asked of
the real one alone."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.engine_rig import new_ref
from tests.fakes.sandbox import FakeSandbox, SandboxState

from perdure.api.runtime import RuntimeSpec
from perdure.network.none import LoopbackSandbox
from perdure.plan.certainty import Absent, Present
from perdure.reconcile.ports.sandbox import Sandbox, SandboxPlan

SPEC = RuntimeSpec(image="any")


@pytest.fixture(params=["fake", pytest.param("none", marks=pytest.mark.root)])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    if request.param == "fake":
        return FakeSandbox(SandboxState())
    real: Sandbox = request.getfixturevalue("loopback")
    return real


@pytest.fixture
def loopback() -> Iterator[Sandbox]:
    path = Path(tempfile.mkdtemp(prefix="perdure-test-", dir="/run"))
    yield LoopbackSandbox(path)
    shutil.rmtree(path)


def identity(path: str) -> int:
    """The inode of a namespace file: which namespace it is."""
    return Path(path).stat().st_ino


async def test_nothing_is_there_of_an_unknown_runtime(sandbox: Sandbox) -> None:
    assert await sandbox.observe(new_ref()) == Absent()
    assert list(await sandbox.inventory()) == []


async def test_a_created_sandbox_is_seen_and_creating_it_again_keeps_it(sandbox: Sandbox) -> None:
    ref = new_ref()
    made = await sandbox.create(SandboxPlan(ref, SPEC))
    assert await sandbox.observe(ref) == Present(made)
    assert await sandbox.create(SandboxPlan(ref, SPEC)) == made
    assert await sandbox.observe(ref) == Present(made)
    await sandbox.remove(ref)


async def test_a_removed_sandbox_is_gone_and_may_be_removed_again(sandbox: Sandbox) -> None:
    ref = new_ref()
    await sandbox.create(SandboxPlan(ref, SPEC))
    for _ in range(2):
        await sandbox.remove(ref)
        assert await sandbox.observe(ref) == Absent()


async def test_removing_one_sandbox_leaves_the_others(sandbox: Sandbox) -> None:
    going, staying = new_ref(), new_ref()
    made = [await sandbox.create(SandboxPlan(ref, SPEC)) for ref in (going, staying)]
    assert made[0].netns != made[1].netns
    await sandbox.remove(going)
    assert await sandbox.observe(staying) == Present(made[1])
    await sandbox.remove(staying)


async def test_the_inventory_names_every_runtime(sandbox: Sandbox) -> None:
    refs = [new_ref(), new_ref()]
    for ref in refs:
        await sandbox.create(SandboxPlan(ref, SPEC))
    assert set(await sandbox.inventory()) == {ref.uid for ref in refs}
    for ref in refs:
        await sandbox.remove(ref)
    assert list(await sandbox.inventory()) == []


@pytest.mark.root
async def test_a_sandbox_is_a_namespace_of_its_own_until_it_is_removed(loopback: Sandbox) -> None:
    ref = new_ref()
    made = await loopback.create(SandboxPlan(ref, SPEC))
    first = identity(made.netns)
    await loopback.create(SandboxPlan(ref, SPEC))
    assert identity(made.netns) == first != identity("/proc/self/ns/net")
    await loopback.remove(ref)
    with pytest.raises(FileNotFoundError):
        identity(made.netns)


@pytest.mark.root
async def test_sandboxes_are_apart_from_each_other(loopback: Sandbox) -> None:
    refs = [new_ref(), new_ref()]
    spaces = {identity((await loopback.create(SandboxPlan(ref, SPEC))).netns) for ref in refs}
    assert len(spaces) == 2
    for ref in refs:
        await loopback.remove(ref)
