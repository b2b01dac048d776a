"""Exports and restores on a store or a layer that misbehaves: a clear error, nothing half, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.integration.archive.conftest import processes_naming
from tests.integration.archive.layers import INSTALLATION, REF, Place, fill, request
from tests.rig_support.tree import describe

from perdure.api.conditions import Reason
from perdure.archive import layout
from perdure.archive.manifest import NAMED_SOCKETS
from perdure.archive.tree import MAX_PATH
from perdure.reconcile.ports.errors import StoreError

pytestmark = pytest.mark.root

MEBIBYTE = 1 << 20


@contextmanager
def mounted(target: Path, *arguments: str) -> Iterator[None]:
    subprocess.run(["mount", *arguments, str(target)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(target)], check=True)


def noise(path: Path, mebibytes: int) -> None:
    """A file that does not compress."""
    source = random.Random(7)
    with path.open("wb") as file:
        for _ in range(mebibytes):
            file.write(source.randbytes(MEBIBYTE))


async def eventually(condition: Callable[[], bool], *, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - another process makes it true, and tells nobody
            await asyncio.sleep(0.005)


def stored(place: Place) -> list[str]:
    return sorted(path.name for path in place.store.root.rglob("*") if not path.is_dir())


async def test_a_full_store_is_an_error_that_says_so_and_keeps_what_it_had(place: Place) -> None:
    with mounted(place.store.root, "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
        (place.source.upper / "small").write_text("x")
        first = await place.store.export(request(1), place.source)
        noise(place.source.upper / "large", 8)
        with pytest.raises(StoreError, match="enlarge its disk, or purge names") as caught:
            await place.store.preflight(8 * MEBIBYTE)
        assert caught.value.reason is Reason.STORE_FULL
        await place.store.preflight(None)
        with pytest.raises(StoreError, match="free space") as caught:
            await place.store.export(request(2), place.source)
        assert caught.value.reason is Reason.STORE_FULL
        assert stored(place) == ["1.json", "1.tar.zst"]
        await place.store.verify(first)


async def test_the_reserve_stays_free(place: Place) -> None:
    with mounted(place.store.root, "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
        await replace(place.store, reserve=1 * MEBIBYTE).preflight(1 * MEBIBYTE)
        with pytest.raises(StoreError, match="reserve of 3 MiB"):
            await replace(place.store, reserve=3 * MEBIBYTE).preflight(2 * MEBIBYTE)


async def test_a_read_only_store_is_unavailable_for_writing_and_can_be_read(place: Place) -> None:
    fill(place.source.upper)
    archive = await place.store.export(request(), place.source)
    with mounted(place.store.root, "--bind", "-o", "ro", str(place.store.root)):
        for call in (place.store.preflight(None), place.store.export(request(2), place.source)):
            with pytest.raises(StoreError, match="Read-only") as caught:
                await call
            assert caught.value.reason is Reason.STORE_UNAVAILABLE
        with pytest.raises(StoreError, match="Read-only"):
            await place.store.delete(archive)
        await place.store.verify(archive)
        await place.store.restore(archive, place.fresh)
    assert describe(place.fresh.upper) == describe(place.source.upper)


async def test_a_store_on_a_disk_of_its_own_is_used_around_what_the_file_system_keeps_there(place: Place) -> None:
    for name in ("lost+found/#12", ".snapshot/hourly.0", ".Trash-0/files"):
        (place.store.root / name).mkdir(parents=True)
        (place.store.root / name / "1.tar.zst.partial").touch()
    (place.store.root / "readme").touch()
    theirs = stored(place)
    await place.store.open()
    archive = await place.store.export(request(), place.source)
    (place.runtime_folder.parent / ".snapshot").mkdir()
    await place.store.verify(archive)
    await place.store.compare(archive, place.source)
    await place.store.restore(archive, place.fresh)
    assert await place.store.list(INSTALLATION, REF) == (archive.sequence,)
    await place.store.delete(archive)
    assert await place.store.list(INSTALLATION, REF) == ()
    assert stored(place) == theirs


async def test_a_store_that_is_away_is_no_empty_store(place: Place) -> None:
    archive = await place.store.export(request(), place.source)
    place.store.root.rename(place.base / "elsewhere")
    for call in (
        place.store.preflight(None),
        place.store.export(request(), place.source),
        place.store.verify(archive),
        place.store.delete(archive),
        place.store.list(INSTALLATION, REF),
    ):
        with pytest.raises(StoreError) as caught:
            await call
        assert caught.value.reason is Reason.STORE_UNAVAILABLE
    assert not place.store.root.exists()


@pytest.mark.parametrize("where", ["root", "below"])
async def test_a_file_in_place_of_a_folder_is_unavailable(place: Place, where: str) -> None:
    if where == "root":
        place.store.root.rmdir()
        place.store.root.touch()
    else:
        (place.store.root / INSTALLATION).mkdir()
        (place.store.root / INSTALLATION / REF.namespace).touch()
    with pytest.raises(StoreError, match="Not a directory") as caught:
        await place.store.export(request(), place.source)
    assert caught.value.reason is Reason.STORE_UNAVAILABLE


async def test_a_link_in_place_of_a_folder_is_not_followed(place: Place) -> None:
    outside = place.base / "outside"
    outside.mkdir()
    (place.store.root / INSTALLATION).symlink_to(outside)
    with pytest.raises(StoreError):
        await place.store.export(request(), place.source)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("attribute", ["trusted.overlay.redirect", "trusted.overlay.metacopy", "trusted.other"])
async def test_a_layer_that_does_not_hold_its_own_data_is_refused(place: Place, attribute: str) -> None:
    (place.source.upper / "moved").mkdir()
    os.setxattr(place.source.upper / "moved", attribute, b"/etc")
    with pytest.raises(StoreError, match="moved has the attribute") as caught:
        await place.store.export(request(), place.source)
    assert caught.value.reason is Reason.ARCHIVE_FAILED
    assert stored(place) == []


async def test_a_path_too_long_to_be_extracted_is_refused(place: Place) -> None:
    fd = os.open(place.source.upper, os.O_RDONLY)
    length = 0
    while length <= MAX_PATH:
        os.mkdir("d" * 250, dir_fd=fd)
        deeper = os.open("d" * 250, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd, length = deeper, length + 251
    os.close(fd)
    with pytest.raises(StoreError, match="is a path of"):
        await place.store.export(request(), place.source)
    assert stored(place) == []


def deep_folder(upper: Path) -> int:
    """A descriptor of a folder whose path takes some 11 KiB when it is written into a manifest."""
    fd = os.open(upper, os.O_RDONLY)
    for _ in range(15):
        os.mkdir(b"\xff" * 250, dir_fd=fd)
        deeper = os.open(b"\xff" * 250, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    return fd


async def test_any_number_of_sockets_is_left_out_and_few_are_named(place: Place) -> None:
    fd = deep_folder(place.source.upper)
    for n in range(8000):
        os.mknod(f"{n:05}", stat.S_IFSOCK | 0o600, dir_fd=fd)
    os.close(fd)
    archive = await place.store.export(request(), place.source)
    contents = msgspec.json.decode(place.manifest_file().read_bytes())["contents"]
    assert len(contents["sockets"]) == NAMED_SOCKETS
    assert contents["more_sockets"] == 8000 - NAMED_SOCKETS
    assert contents["sockets"][0].endswith("/00000")
    await place.store.verify(archive)
    await place.store.restore(archive, place.fresh)
    assert describe(place.fresh.upper) == describe(place.source.upper)


async def test_a_layer_of_which_the_manifest_could_not_be_read_is_refused_and_kept(place: Place) -> None:
    fd = deep_folder(place.source.upper)
    for n in range(6000):
        os.mknod(f"{n:05}", stat.S_IFCHR | 0o600, os.makedev(1, 3), dir_fd=fd)
    os.close(fd)
    with pytest.raises(StoreError, match="6000 device nodes") as caught:
        await place.store.export(request(), place.source)
    assert caught.value.reason is Reason.ARCHIVE_FAILED
    assert stored(place) == []


@contextmanager
def kept_busy(work: Callable[[int], None]) -> Iterator[None]:
    """Call `work` with rising numbers in a thread, without a pause."""
    done = threading.Event()

    def loop() -> None:
        number = 0
        while not done.is_set():
            work(number)
            number += 1

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("change", ["grows", "vanishes", "appears", "is rewritten"])
async def test_a_layer_that_changes_meanwhile_is_never_archived_half(place: Place, change: str) -> None:
    upper = place.source.upper
    noise(upper / "a large file first", 24)
    target = upper / "changing"
    target.write_bytes(bytes(1000))

    def work(number: int) -> None:
        match change:
            case "grows":
                with target.open("ab") as file:
                    file.write(b"more")
            case "vanishes":
                target.unlink(missing_ok=True)
                target.write_bytes(bytes(1000))
            case "appears":
                (upper / f"new-{number % 5000}").touch()
            case _:
                target.write_bytes(number.to_bytes(4) * 250)

    with kept_busy(work), pytest.raises(StoreError) as caught:
        await place.store.export(request(), place.source)
    assert caught.value.reason is Reason.ARCHIVE_FAILED
    assert stored(place) == []


@pytest.mark.parametrize("tool", ["tar", "zstd"])
async def test_a_stage_killed_in_the_middle_is_a_failure(place: Place, tool: str) -> None:
    noise(place.source.upper / "large", 200)
    export = asyncio.create_task(place.store.export(request(), place.source))
    await eventually(lambda: _pids(place, tool) != [])
    os.kill(_pids(place, tool)[0], signal.SIGKILL)
    with pytest.raises(StoreError, match=f"{tool} ended with status -9"):
        await export
    assert stored(place) == []


def _pids(place: Place, tool: str) -> list[int]:
    """Processes of the tool that have the layer or the store open, or named."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and (process / "comm").read_text().strip() == tool:
                opened = [os.readlink(fd) for fd in (process / "fd").iterdir()]
                named = (process / "cmdline").read_text()
                if any(str(place.base) in text for text in (*opened, named)):
                    found.append(int(process.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


async def test_cancellation_ends_all_processes_and_removes_the_temporary_file(place: Place) -> None:
    noise(place.source.upper / "large", 200)
    export = asyncio.create_task(place.store.export(request(), place.source))
    await eventually(lambda: _pids(place, "zstd") != [])
    assert stored(place) == ["1.tar.zst.partial"]
    export.cancel()
    with pytest.raises(asyncio.CancelledError):
        await export
    assert stored(place) == []
    assert processes_naming(place.base) == []


async def test_a_job_that_does_not_move_is_ended(place: Place) -> None:
    store = replace(place.store, stall_seconds=0.01)
    with pytest.raises(StoreError, match="did not move") as caught:
        await store.export(request(), place.source)
    assert caught.value.reason is Reason.STORE_UNAVAILABLE
    assert stored(place) == []


async def test_leftovers_of_a_killed_job_are_swept_at_start_and_by_the_next_export(place: Place) -> None:
    place.runtime_folder.mkdir(parents=True)
    leftover = place.runtime_folder / "1.tar.zst.partial"
    leftover.write_text("half")
    await place.store.open()
    assert stored(place) == []
    leftover.write_text("half")
    place.archive_file().write_text("an archive without its manifest does not count")
    archive = await place.store.export(request(), place.source)
    await place.store.verify(archive)
    assert stored(place) == ["1.json", "1.tar.zst"]


async def test_a_folder_that_another_process_works_in_is_left_alone(place: Place) -> None:
    place.runtime_folder.mkdir(parents=True)
    (place.runtime_folder / "1.tar.zst.partial").write_text("half")
    with layout.open_folder(place.runtime_folder, ()) as folder, layout.locked(folder):
        await place.store.open()
        with pytest.raises(StoreError, match="another process"):
            await place.store.export(request(), place.source)
    assert stored(place) == ["1.tar.zst.partial"]


async def test_a_full_disk_of_the_engine_fails_the_restore_and_leaves_the_layer(place: Place) -> None:
    noise(place.source.upper / "large", 8)
    archive = await place.store.export(request(), place.source)
    disk = place.base / "small disk"
    disk.mkdir()
    with mounted(disk, "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
        layer = replace(place.fresh, upper=disk / "2" / "fs", staging_root=disk / "staging")
        layer.upper.mkdir(parents=True)
        layer.staging_root.mkdir()
        with pytest.raises(StoreError, match="check the space") as caught:
            await place.store.restore(archive, layer)
        assert caught.value.reason is Reason.RESTORE_FAILED
        assert list(layer.upper.iterdir()) == list(layer.staging_root.iterdir()) == []


async def test_staging_on_another_mount_fails_the_restore_and_leaves_the_layer(place: Place) -> None:
    fill(place.source.upper)
    archive = await place.store.export(request(), place.source)
    with mounted(place.fresh.staging_root, "-t", "tmpfs", "tmpfs"), pytest.raises(StoreError) as caught:
        await place.store.restore(archive, place.fresh)
    assert caught.value.reason is Reason.RESTORE_FAILED
    assert list(place.fresh.upper.iterdir()) == []


async def test_the_event_loop_goes_on_during_an_export(place: Place) -> None:
    noise(place.source.upper / "large", 64)
    export = asyncio.create_task(place.store.export(request(), place.source))
    late = []
    while not export.done():
        before = time.monotonic()
        await asyncio.sleep(0.005)
        late.append(time.monotonic() - before - 0.005)
    await export
    assert sorted(late)[int(len(late) * 0.9)] < 0.05
