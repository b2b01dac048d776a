"""SIGKILL at random instants of an export and of a restore: nothing is left but what the next attempt sweeps."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from pathlib import Path

import msgspec
import pytest
from tests.integration.archive.conftest import processes_naming
from tests.integration.archive.layers import Place, fill, request
from tests.integration.archive.test_faults import eventually, noise, stored
from tests.rig_support.tree import describe

import perdure
from perdure.api.conditions import Reason
from perdure.reconcile.ports.errors import StoreError

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

KILLS = 20
_SOURCE_ROOT = Path(perdure.__file__).resolve().parents[1]
_TESTS_ROOT = Path(__file__).resolve().parents[3]


async def start(place: Place, what: str) -> asyncio.subprocess.Process:
    """Start `killed.py`; returns when it is about to call the port."""
    paths = os.pathsep.join((str(_SOURCE_ROOT), str(_TESTS_ROOT)))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "tests.integration.archive.killed", str(place.base), what),
        env={**os.environ, "PYTHONPATH": paths},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    async with asyncio.timeout(60):
        assert await process.stderr.readline() == b"ready\n"
    return process


async def kill_after(process: asyncio.subprocess.Process, seconds: float) -> None:
    """SIGKILL after so long, unless it ended before."""
    try:
        async with asyncio.timeout(seconds):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def whole_run(place: Place, what: str) -> float:
    """Seconds that it takes when nobody kills it."""
    process = await start(place, what)
    began = time.monotonic()
    assert await process.wait() == 0
    return time.monotonic() - began


async def nothing_runs(place: Place) -> None:
    await eventually(lambda: processes_naming(place.base) == [])
    assert str(place.base) not in Path("/proc/self/mountinfo").read_text()  # noqa: ASYNC240


def prepare(place: Place) -> dict[str, tuple[object, ...]]:
    fill(place.source.upper)
    noise(place.source.upper / "large", 24)
    return describe(place.source.upper)


async def test_an_export_killed_at_any_instant_can_be_repeated(place: Place) -> None:
    before = prepare(place)
    duration = await whole_run(place, "export")
    chance = random.Random(3)
    for attempt in range(KILLS):
        for path in (place.manifest_file(), place.archive_file()):
            path.unlink(missing_ok=True)
        await kill_after(await start(place, "export"), chance.uniform(0, 1.05) * duration)
        await nothing_runs(place)
        counted = place.manifest_file().exists()
        identity = place.archive_file().stat().st_ino if counted else None
        archive = await place.store.export(request(), place.source)
        await place.store.verify(archive)
        assert stored(place) == ["1.json", "1.tar.zst"], attempt
        assert not counted or place.archive_file().stat().st_ino == identity, "a complete archive was written again"
    await place.store.restore(archive, place.fresh)
    assert describe(place.fresh.upper) == before == describe(place.source.upper)


async def test_a_restore_killed_at_any_instant_can_be_repeated(place: Place) -> None:
    before = prepare(place)
    archive = await place.store.export(request(), place.source)
    what = msgspec.json.encode(archive).decode()
    duration = await whole_run(place, what)
    chance = random.Random(5)
    for attempt in range(KILLS):
        await kill_after(await start(place, what), chance.uniform(0, 1.05) * duration)
        await nothing_runs(place)
        if attempt % 5 == 0:
            await place.store.restore(archive, place.fresh)
            assert list(place.fresh.staging_root.iterdir()) == []
        assert describe(place.fresh.upper) == before, "the layer is whole at every instant, once it was"
    await place.store.restore(archive, place.fresh)
    assert list(place.fresh.staging_root.iterdir()) == []
    assert describe(place.fresh.upper) == before


async def test_a_first_restore_that_is_killed_leaves_the_layer_empty_or_whole(place: Place) -> None:
    before = prepare(place)
    archive = await place.store.export(request(), place.source)
    empty = describe(place.fresh.upper)
    what = msgspec.json.encode(archive).decode()
    duration = await whole_run(place, what)
    chance = random.Random(6)
    for _ in range(5):
        await place.store.restore(archive, place.fresh)
        place.fresh.upper.rename(place.fresh.upper.with_name("old"))
        place.fresh.upper.mkdir()
        os.utime(place.fresh.upper, ns=(0, 0))
        empty = describe(place.fresh.upper)
        await kill_after(await start(place, what), chance.uniform(0.3, 1.05) * duration)
        await nothing_runs(place)
        assert describe(place.fresh.upper) in (empty, before)
        place.fresh.upper.with_name("old").rename(place.base / f"removed-{time.monotonic_ns()}")


@pytest.mark.parametrize("attempt", range(5))
async def test_a_killed_worker_is_an_error_and_leaves_nothing(place: Place, attempt: int) -> None:
    noise(place.source.upper / "large", 100)
    export = asyncio.create_task(place.store.export(request(), place.source))
    chance = random.Random(attempt)
    await eventually(lambda: _workers() != [])
    await asyncio.sleep(chance.uniform(0, 0.3))
    workers = _workers()
    os.kill(chance.choice(workers), signal.SIGKILL)
    with pytest.raises(StoreError, match="worker died") as caught:
        await export
    assert caught.value.reason is Reason.ARCHIVE_FAILED
    await nothing_runs(place)
    assert stored(place) == []


def _workers() -> list[int]:
    """Keeper and child of this process's worker."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if (
                process.name.isdigit()
                and f"perdure.archive.worker\0{os.getpid()}\0" in (process / "cmdline").read_text()
            ):
                found.append(int(process.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
