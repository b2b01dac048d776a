"""A layer that was changed since it was archived is noticed, whatever a program did to hide it; so is an archive whose
bytes are gone."""

from __future__ import annotations

import os
import stat

import pytest
from tests.integration.archive.layers import Place, fill, request
from tests.integration.archive.test_faults import stored

from perdure.reconcile.ports.errors import ArchiveCorrupt, ArchiveOutdated

pytestmark = pytest.mark.root


@pytest.mark.parametrize("how", ["in place", "replaced", "another owner", "a deletion"])
async def test_a_layer_that_was_changed_is_noticed_though_size_and_times_are_put_back(place: Place, how: str) -> None:
    fill(place.source.upper)
    archive = await place.store.export(request(), place.source)
    await place.store.compare(archive, place.source)
    plain = place.source.upper / "plain"
    before, folder = plain.stat(), plain.parent.stat()
    match how:
        case "in place":
            with plain.open("r+b") as file:
                file.write(b"PLAIN")
        case "replaced":
            (place.base / "other").write_bytes(plain.read_bytes().upper())
            os.chown(place.base / "other", before.st_uid, before.st_gid)
            os.chmod(place.base / "other", before.st_mode)
            os.replace(place.base / "other", plain)
        case "another owner":
            os.chown(plain, 1, 1)
            os.chown(plain, before.st_uid, before.st_gid)
        case "a deletion":
            os.mknod(place.source.upper / "whiteout of this test", stat.S_IFCHR, 0)
    os.utime(plain, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(plain.parent, ns=(folder.st_atime_ns, folder.st_mtime_ns))
    with pytest.raises(ArchiveOutdated):
        await place.store.compare(archive, place.source)
    with pytest.raises(ArchiveOutdated):
        await place.store.export(request(), place.source)
    newer = await place.store.export(request(sequence=2), place.source)
    await place.store.compare(newer, place.source)
    await place.store.verify(archive)
    assert stored(place) == ["1.json", "1.tar.zst", "2.json", "2.tar.zst"]


@pytest.mark.parametrize("how", ["removed", "emptied", "cut", "longer"])
async def test_an_archive_whose_bytes_are_not_all_there_does_not_stand_for_its_layer(place: Place, how: str) -> None:
    (place.source.upper / "save").write_text("level 3")
    archive = await place.store.export(request(), place.source)
    await place.store.compare(archive, place.source)
    match how:
        case "removed":
            place.archive_file().unlink()
        case "emptied":
            os.truncate(place.archive_file(), 0)
        case "cut":
            os.truncate(place.archive_file(), archive.bytes - 1)
        case "longer":
            os.truncate(place.archive_file(), archive.bytes + 1)
    with pytest.raises(ArchiveCorrupt, match="left as it is"):
        await place.store.compare(archive, place.source)
    newer = await place.store.export(request(sequence=2), place.source)
    await place.store.compare(newer, place.source)
