"""What comes back is what was there: content, metadata, and overlay's marks."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

import pytest
from tests.integration.archive.layers import INSTALLATION, NODE, REF, Place, fill, request
from tests.rig_support.tree import describe, digest

pytestmark = pytest.mark.root


async def test_a_layer_with_everything_in_it_comes_back_exactly(place: Place) -> None:
    fill(place.source.upper)
    before = describe(place.source.upper)
    archive = await place.store.export(request(), place.source)
    await place.store.verify(archive)
    await place.store.restore(archive, place.fresh)
    assert describe(place.fresh.upper) == before
    assert digest(place.fresh.upper) == digest(place.source.upper)
    assert (place.fresh.upper / "sparse").stat().st_blocks < 1000
    assert list(place.fresh.staging_root.iterdir()) == []


async def test_an_export_changes_nothing_in_the_layer(place: Place) -> None:
    fill(place.source.upper)
    before = describe(place.source.upper, sockets=True)
    for path in (place.source.upper / "plain", place.source.upper / "odd"):
        os.utime(path, ns=(0, path.stat().st_mtime_ns))  # with relatime, a read would now count
    accessed = {path: path.lstat().st_atime_ns for path in (place.source.upper / "plain", place.source.upper / "odd")}
    await place.store.export(request(), place.source)
    assert {path: path.lstat().st_atime_ns for path in accessed} == accessed
    assert describe(place.source.upper, sockets=True) == before


async def test_the_manifest_says_where_it_came_from_and_what_a_tar_cannot_hold(place: Place) -> None:
    fill(place.source.upper)
    archive = await place.store.export(request(), place.source)
    manifest = json.loads(place.manifest_file().read_bytes())
    contents = manifest["contents"]
    assert (manifest["format_version"], manifest["sha256"], manifest["bytes"]) == (1, archive.sha256, archive.bytes)
    assert manifest["bytes"] == place.archive_file().stat().st_size
    assert contents["source"] == {
        "installation": INSTALLATION,
        "kind": "BotRuntime",
        "namespace": REF.namespace,
        "namespace_uid": REF.namespace_uid,
        "name": REF.name,
        "uid": REF.uid,
        "sequence": 1,
        "node_id": NODE,
        "snapshot_key": REF.snapshot_key(1),
        "image": "perdure.dev/samples/busybox:1",
        "image_digest": "sha256:d",
        "chain_id": "sha256:c",
    }
    assert contents["consistency"] == "stopped"
    assert contents["sockets"] == ["socket"]
    assert contents["opaque"] == ["opaque"]
    names = ["#hash", "-X", "file", "glob*%5C", "new%0Aline", "trailing ", "%FF"]
    assert sorted(contents["deletions"]) == sorted(f"deleted/{name}" for name in names)
    assert [(node["path"], node["major"], node["minor"]) for node in contents["devices"]] == [
        ("disk", 250, 70_000),
        ("null", 1, 3),
    ]
    assert set(contents["tools"]) == {"tar", "zstd"}
    assert (archive.node_id, archive.store, archive.empty) == (NODE, "default", False)


async def test_only_the_owner_can_read_the_store(place: Place) -> None:
    fill(place.source.upper)
    await place.store.export(request(), place.source)
    for path in place.store.root.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("with_socket", [False, True])
async def test_an_empty_layer_is_an_explicit_empty_archive(place: Place, with_socket: bool) -> None:
    if with_socket:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place.source.upper / "s"))
    archive = await place.store.export(request(), place.source)
    assert archive.empty
    assert (archive.entries, archive.bytes > 0) == (1, True)
    await place.store.restore(archive, place.fresh)
    assert list(place.fresh.upper.iterdir()) == []


@pytest.mark.parametrize("mark", ["deletion", "opaque", "device"])
async def test_a_layer_with_only_a_mark_in_it_is_not_empty(place: Place, mark: str) -> None:
    match mark:
        case "deletion":
            os.mknod(place.source.upper / "gone", stat.S_IFCHR, 0)
        case "opaque":
            os.setxattr(place.source.upper, "trusted.overlay.opaque", b"y")
        case _:
            os.mknod(place.source.upper / "null", stat.S_IFCHR, os.makedev(1, 3))
    archive = await place.store.export(request(), place.source)
    assert not archive.empty
    await place.store.restore(archive, place.fresh)
    assert describe(place.fresh.upper) == describe(place.source.upper)


async def test_a_file_whose_other_link_is_outside_of_the_layer_is_kept_whole(place: Place, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("content")
    os.link(tmp_path / "outside", place.source.upper / "inside")
    archive = await place.store.export(request(), place.source)
    await place.store.restore(archive, place.fresh)
    assert (place.fresh.upper / "inside").read_text() == "content"


async def test_a_hole_of_a_terabyte_stays_a_hole(place: Place) -> None:
    with (place.source.upper / "image").open("wb") as file:
        file.seek(1 << 40)
        file.write(b"end")
    archive = await place.store.export(request(), place.source)
    assert archive.bytes < 1 << 20
    await place.store.restore(archive, place.fresh)
    status = (place.fresh.upper / "image").stat()
    assert (status.st_size, status.st_blocks < 1000) == ((1 << 40) + 3, True)


async def test_a_restore_replaces_whatever_a_failed_attempt_left(place: Place) -> None:
    fill(place.source.upper)
    archive = await place.store.export(request(), place.source)
    (place.fresh.upper / "half").mkdir()
    (place.fresh.upper / "half" / "done").write_text("partial")
    leftover = place.fresh.staging_root / f"{place.fresh.key}.restore" / "tree"
    leftover.mkdir(parents=True)
    (leftover / "junk").write_text("x")
    outside = place.base / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    os.symlink(outside, leftover / "link")
    foreign = place.fresh.staging_root / "of somebody else"
    foreign.mkdir()
    for _ in range(2):
        await place.store.restore(archive, place.fresh)
        assert describe(place.fresh.upper) == describe(place.source.upper)
    assert list(place.fresh.staging_root.iterdir()) == [foreign]
    assert (outside / "kept").exists()
