"""Damaged and hostile archives: refused, left as they are, and nothing in the layer or outside of it is touched."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from tests.integration.archive.layers import REF, Place, fill, forge, member, request, tar_of
from tests.rig_support.tree import describe

from perdure.api.conditions import Reason
from perdure.api.names import ChainId, Uid
from perdure.archive.extractor import _jailed_tar
from perdure.plan.world import ArchiveFacts
from perdure.reconcile.ports.errors import ArchiveCorrupt, StoreError

pytestmark = pytest.mark.root


async def _refused(place: Place, archive: ArchiveFacts) -> str:
    """Neither verify nor restore takes it; the archive and the layer stay as they are. The message."""
    held = {path: path.read_bytes() for path in place.runtime_folder.iterdir()}
    before = describe(place.fresh.upper)
    with pytest.raises(ArchiveCorrupt) as verified:
        await place.store.verify(archive)
    with pytest.raises(ArchiveCorrupt) as restored:
        await place.store.restore(archive, place.fresh)
    assert describe(place.fresh.upper) == before
    assert list(place.fresh.staging_root.iterdir()) == []
    assert {path: path.read_bytes() for path in place.runtime_folder.iterdir()} == held
    assert verified.value.blocks_data
    assert str(restored.value)
    return str(verified.value)


async def _export(place: Place) -> ArchiveFacts:
    fill(place.source.upper)
    return await place.store.export(request(), place.source)


@pytest.mark.parametrize("missing", [1, 0.1, 0.5, 0.99, 1.0])
async def test_a_truncated_archive_is_corrupt(place: Place, missing: float) -> None:
    archive = await _export(place)
    cut = missing if isinstance(missing, int) else int(archive.bytes * missing)
    os.truncate(place.archive_file(), archive.bytes - cut)
    await _refused(place, archive)


@pytest.mark.parametrize("at", [0.0, 0.001, 0.2, 0.5, 0.8, 0.9999])
async def test_one_flipped_bit_is_corrupt(place: Place, at: float) -> None:
    archive = await _export(place)
    data = bytearray(place.archive_file().read_bytes())
    data[int(len(data) * at)] ^= 0x10
    place.archive_file().write_bytes(data)
    assert "SHA-256" in await _refused(place, archive)


async def test_something_appended_is_corrupt(place: Place) -> None:
    archive = await _export(place)
    with place.archive_file().open("ab") as file:
        file.write(b"more")
    await _refused(place, archive)


async def test_a_manifest_that_was_edited_is_corrupt(place: Place) -> None:
    """What is deleted on restore stands in the archive itself, under the hash that the catalogue knows."""
    archive = await _export(place)
    manifest = json.loads(place.manifest_file().read_bytes())
    manifest["contents"]["deletions"] = ["etc/passwd"]
    place.manifest_file().write_text(json.dumps(manifest))
    assert "manifest" in await _refused(place, archive)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"format_version": 2}'])
async def test_a_manifest_that_is_none_is_corrupt(place: Place, content: bytes) -> None:
    archive = await _export(place)
    place.manifest_file().write_bytes(content)
    assert "manifest" in await _refused(place, archive)


async def test_an_archive_that_the_catalogue_describes_otherwise_is_corrupt(place: Place) -> None:
    archive = await _export(place)
    for otherwise in (
        replace(archive, sha256="0" * 64),
        replace(archive, bytes=archive.bytes + 1),
        replace(archive, entries=archive.entries - 1),
        replace(archive, uncompressed_bytes=archive.uncompressed_bytes + 512),
        replace(archive, snapshot_key=REF.snapshot_key(9)),
        replace(archive, chain_id=ChainId("sha256:other")),
    ):
        await _refused(place, otherwise)


async def test_half_an_archive_is_corrupt_and_none_at_all_is_out_of_reach(place: Place) -> None:
    archive = await _export(place)
    held = place.manifest_file().read_bytes()
    place.manifest_file().unlink()
    assert "manifest is missing" in await _refused(place, archive)
    place.archive_file().unlink()
    for call in (place.store.verify(archive), place.store.restore(archive, place.fresh)):
        with pytest.raises(StoreError) as caught:
            await call
        assert caught.value.reason is Reason.ARCHIVE_NOT_REACHABLE
        assert not caught.value.blocks_data
    place.manifest_file().write_bytes(held)
    assert "but not its bytes" in await _refused(place, archive)


ESCAPED = Path("/tmp/escaped")
FOLDER = (member("./", tarfile.DIRTYPE), b"")
HOSTILE = {
    "parent": [(member("./../escaped", size=1), b"x")],
    "inner parent": [(member("./a/../../escaped", size=1), b"x")],
    "absolute": [(member("/tmp/escaped", size=1), b"x")],
    "without prefix": [(member("escaped", size=1), b"x")],
    "through a link": [(member("./l", tarfile.SYMTYPE, link="/tmp"), b""), (member("./l/escaped", size=1), b"x")],
    "link, then folder": [(member("./l", tarfile.SYMTYPE, link="/tmp"), b""), (member("./l/", tarfile.DIRTYPE), b"")],
    "link, then file": [(member("./l", tarfile.SYMTYPE, link="/tmp/escaped"), b""), (member("./l", size=1), b"x")],
    "hard link out": [(member("./h", tarfile.LNKTYPE, link="./../../escaped"), b"")],
    "absolute hard link": [(member("./h", tarfile.LNKTYPE, link="/etc/passwd"), b"")],
    "hard link to nothing": [(member("./h", tarfile.LNKTYPE, link="./later"), b"")],
    "hard link to a folder": [
        (member("./a/", tarfile.DIRTYPE), b""),
        (member("./h", tarfile.LNKTYPE, link="./a"), b""),
    ],
    "character device": [(member("./c", tarfile.CHRTYPE), b"")],
    "block device": [(member("./b", tarfile.BLKTYPE), b"")],
    "fifo, then file": [(member("./f", tarfile.FIFOTYPE), b""), (member("./f", size=1), b"x")],
    "twice": [(member("./f", size=1), b"x"), (member("./f", size=1), b"y")],
    "out of order": [(member("./g", size=1), b"x"), (member("./f", size=1), b"y")],
    "trusted attribute": [(member("./f", SCHILY__xattr__trusted__overlay__redirect="/etc"), b"")],
    "unknown record": [(member("./f", hdrcharset="BINARY"), b"")],
    "contiguous": [(member("./f", tarfile.CONTTYPE), b"")],
    "petabyte of nothing": [
        (
            member(
                "./GNUSparseFile.1/f",
                size=512,
                GNU__sparse__major="1",
                GNU__sparse__minor="0",
                GNU__sparse__name="./f",
                GNU__sparse__realsize=str(1 << 50),
            ),
            b"1\n0\n0\n".ljust(512, b"\0"),
        )
    ],
    "bomb": [(member("./f", size=2 << 20), bytes(2 << 20))],
    "more entries than said": [(member(f"./{n:03}"), b"") for n in range(500)],
    "without root": [],
}


def _escaped() -> bool:
    return ESCAPED.exists()


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_archive_is_refused_even_when_its_hash_is_known(place: Place, name: str) -> None:
    archive = await _export(place)
    members = HOSTILE[name]
    tar = tar_of(*([FOLDER] if name != "without root" else [(member("./f", size=1), b"x")]), *members)
    forged = forge(place, archive, tar)
    message = await _refused(place, forged)
    assert not _escaped()
    assert "SHA-256" not in message


async def test_a_tar_of_other_files_than_the_archived_is_refused(place: Place) -> None:
    archive = await _export(place)
    forged = forge(place, archive, tar_of(FOLDER, (member("./f", size=1), b"x")), entries=2)
    await _refused(place, forged)


async def test_a_tar_without_its_end_is_refused(place: Place) -> None:
    archive = await _export(place)
    whole = tar_of(FOLDER, (member("./f", size=600), bytes(600)))
    for cut in (whole[:1024], whole[:1536], whole[:2048], whole[: 512 * 4], whole[: 512 * 5], whole + b"more"):
        await _refused(place, forge(place, archive, cut, entries=2))


@pytest.mark.parametrize(
    "name", ["block device", "trusted attribute", "parent", "absolute", "through a link", "absolute hard link"]
)
def test_the_jail_alone_keeps_devices_and_overlay_attributes_out(place: Place, name: str) -> None:
    """The second wall, without our reader in front of it."""
    tree = place.base / "tree"
    tree.mkdir()
    subprocess.run(
        _jailed_tar(os.fsencode(tree)), input=tar_of(FOLDER, *HOSTILE[name]), capture_output=True, check=False
    )
    made = [path.lstat() for path in tree.rglob("*")]
    assert not any(stat.S_ISBLK(status.st_mode) for status in made)
    attributes = {key for path in tree.rglob("*") for key in os.listxattr(path, follow_symlinks=False)}
    assert not any(key.startswith("trusted.") for key in attributes)
    assert all(status.st_nlink == 1 for status in made if stat.S_ISREG(status.st_mode))
    assert not _escaped()


async def test_archives_of_others_are_not_found_under_a_name_that_is_a_path(place: Place) -> None:
    archive = await _export(place)
    with pytest.raises(ValueError, match="cannot be the name of a folder"):
        await place.store.verify(replace(archive, uid=Uid("../" + archive.uid)))
