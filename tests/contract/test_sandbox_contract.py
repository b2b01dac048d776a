"""What every `Sandbox` does: loopback alone now, networks later."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.engine_rig import new_ref

from perdure.api.runtime import RuntimeSpec
from perdure.network.none import LoopbackSandbox
from perdure.plan.certainty import Absent, Present
from perdure.reconcile.ports.sandbox import Sandbox

pytestmark = pytest.mark.root

SPEC = RuntimeSpec(image="any")


@pytest.fixture(params=["none"])
def sandbox(run_dir: Path) -> Sandbox:
    return LoopbackSandbox(run_dir)


@pytest.fixture
def run_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="perdure-test-", dir="/run"))
    yield path
    shutil.rmtree(path)


def identity(path: str) -> int:
    """The inode of a namespace file: which namespace it is."""
    return Path(path).stat().st_ino


async def test_nothing_is_there_of_an_unknown_runtime(sandbox: Sandbox) -> None:
    assert await sandbox.observe(new_ref()) == Absent()
    assert list(await sandbox.inventory()) == []


async def test_a_created_sandbox_is_seen_and_creating_it_again_keeps_it(sandbox: Sandbox) -> None:
    ref = new_ref()
    made = await sandbox.create(ref, SPEC)
    first = identity(made.netns)
    assert await sandbox.observe(ref) == Present(made)
    assert await sandbox.create(ref, SPEC) == made
    assert identity(made.netns) == first != identity("/proc/self/ns/net")
    await sandbox.remove(ref)


async def test_a_removed_sandbox_is_gone_and_may_be_removed_again(sandbox: Sandbox) -> None:
    ref = new_ref()
    made = await sandbox.create(ref, SPEC)
    for _ in range(2):
        await sandbox.remove(ref)
    assert await sandbox.observe(ref) == Absent()
    with pytest.raises(FileNotFoundError):
        identity(made.netns)


async def test_the_inventory_names_every_runtime(sandbox: Sandbox) -> None:
    refs = [new_ref(), new_ref()]
    for ref in refs:
        await sandbox.create(ref, SPEC)
    assert set(await sandbox.inventory()) == {ref.uid for ref in refs}
    for ref in refs:
        await sandbox.remove(ref)
    assert list(await sandbox.inventory()) == []


async def test_sandboxes_are_apart_from_each_other(sandbox: Sandbox) -> None:
    refs = [new_ref(), new_ref()]
    spaces = {identity((await sandbox.create(ref, SPEC)).netns) for ref in refs}
    assert len(spaces) == 2
    for ref in refs:
        await sandbox.remove(ref)
