"""Many jobs at once: a few run, the others wait in the order in which they came, and leave when they are cancelled."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest
from tests.integration.archive.layers import Place, request

from perdure.archive.local import JOBS_AT_ONCE, LocalStore
from perdure.plan.world import ArchiveFacts
from perdure.reconcile.ports.errors import StoreError

pytestmark = pytest.mark.root

MANY = 3 * JOBS_AT_ONCE


@pytest.fixture
async def archive(place: Place) -> ArchiveFacts:
    (place.source.upper / "file").write_bytes(os.urandom(1 << 20))
    return await place.store.export(request(), place.source)


def workers() -> int:
    """Archive workers that this process started and that have not ended."""
    mark = f"perdure.archive.worker\0{os.getpid()}\0".encode()
    found = 0
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                found += (process / "cmdline").read_bytes().endswith(mark) and _is_child(process)
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def _is_child(process: Path) -> bool:
    """The worker's own keeper, not what that one forked."""
    return f"\nPPid:\t{os.getpid()}\n" in (process / "status").read_text()


async def test_no_more_than_a_few_run_at_once_and_all_are_done(place: Place, archive: ArchiveFacts) -> None:
    jobs = [asyncio.create_task(place.store.verify(archive)) for _ in range(MANY)]
    seen = set()
    while not all(job.done() for job in jobs):
        seen.add(workers())
        await asyncio.sleep(0.01)
    await asyncio.gather(*jobs)
    assert max(seen) == JOBS_AT_ONCE
    assert workers() == 0


async def test_they_come_in_the_order_in_which_they_asked_and_who_is_cancelled_leaves(
    place: Place, archive: ArchiveFacts
) -> None:
    store = replace(place.store, turns=asyncio.Semaphore(1))
    done: list[int] = []

    async def verify(number: int) -> None:
        await store.verify(archive)
        done.append(number)

    async with store.turns:
        jobs = []
        for number in range(5):
            jobs.append(asyncio.create_task(verify(number)))
            await _waits(store, len(jobs))
        for cancelled in (0, 2):
            jobs[cancelled].cancel()
        await asyncio.gather(jobs[0], jobs[2], return_exceptions=True)
        assert workers() == 0
    await asyncio.gather(*jobs, return_exceptions=True)
    assert done == [1, 3, 4]
    assert [job.cancelled() for job in jobs] == [True, False, True, False, False]


async def _waits(store: LocalStore, many: int) -> None:
    """Each looks for its archive in a thread before it asks for a turn."""
    async with asyncio.timeout(20):
        while len(store.turns._waiters or ()) < many:  # noqa: ASYNC110 - a semaphore tells nobody who waits
            await asyncio.sleep(0.005)


async def test_one_that_fails_or_is_cut_off_gives_its_turn_to_the_next(place: Place, archive: ArchiveFacts) -> None:
    store = replace(place.store, turns=asyncio.Semaphore(1))
    missing = replace(archive, sha256="0" * 64)
    for _ in range(3):
        with pytest.raises(Exception, match="corrupt"):
            await store.verify(missing)
        cut_off = asyncio.create_task(store.verify(archive))
        while workers() == 0:  # noqa: ASYNC110 - a process tells nobody that it has begun
            await asyncio.sleep(0.005)
        cut_off.cancel()
        await asyncio.gather(cut_off, return_exceptions=True)
        with pytest.raises(StoreError, match="did not move"):
            await replace(store, stall_seconds=0.001).verify(archive)
    await store.verify(archive)
