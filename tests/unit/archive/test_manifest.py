"""Manifests: any name survives, and what is no manifest is said to be none."""

from __future__ import annotations

import os

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.archive.manifest import (
    MAX_MANIFEST,
    NAMED_SOCKETS,
    Contents,
    Manifest,
    ManifestError,
    Source,
    decode_manifest,
    decode_path,
    encode_frame,
    encode_manifest,
    encode_path,
    read_frame,
)

CONTENTS = Contents(
    source=Source(
        installation="i",
        kind="BotRuntime",
        namespace="default",
        namespace_uid="n",
        name="bot",
        uid="u",
        sequence=3,
        node_id="node",
        snapshot_key="br-u-1",
        image="image:1",
        image_digest="sha256:d",
        chain_id="sha256:c",
    ),
    consistency="stopped",
    created="2024-01-01T00:00:00+00:00",
    tools={"tar": "tar (GNU tar) 1.34"},
    entries=2,
    content_bytes=10,
    tree="0" * 64,
    deletions=("etc/%FF", "a b"),
)
MANIFEST = Manifest(sha256="1" * 64, bytes=5, uncompressed_bytes=10240, empty=False, contents=CONTENTS)

NAMES = st.binary(min_size=1, max_size=30).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)


@given(st.lists(NAMES, max_size=5).map(b"/".join))
def test_any_path_survives_as_text(path: bytes) -> None:
    text = encode_path(path)
    assert text.isascii()
    assert text.isprintable()
    assert decode_path(text) == path


@pytest.mark.parametrize("path", ["..", "a/../b", "/etc/passwd", "a//b", "a/", "./a", "%2e%2e/etc", "a%2F..", "a%00"])
def test_a_path_that_leads_out_of_a_tree_is_refused(path: str) -> None:
    with pytest.raises(ManifestError, match="no path within a layer"):
        decode_path(path)


def test_a_manifest_survives() -> None:
    assert decode_manifest(encode_manifest(MANIFEST)) == MANIFEST


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b'{"format_version": "1"}'])
def test_what_is_no_manifest_is_said_to_be_none(damage: bytes) -> None:
    with pytest.raises(ManifestError, match="not a manifest"):
        decode_manifest(damage)


def test_a_manifest_of_a_later_format_is_not_guessed_at() -> None:
    later = msgspec.json.decode(encode_manifest(MANIFEST))
    later["format_version"] = 2
    with pytest.raises(ManifestError, match="format version 2"):
        decode_manifest(msgspec.json.encode(later))


def frame_of(data: bytes) -> Contents:
    fd = os.memfd_create("archive")
    try:
        os.write(fd, data)
        return read_frame(fd)
    finally:
        os.close(fd)


def test_the_frame_at_the_head_of_an_archive_is_read_back() -> None:
    assert frame_of(encode_frame(CONTENTS) + b"the rest") == CONTENTS


def test_a_frame_that_is_cut_or_another_is_refused() -> None:
    whole = encode_frame(CONTENTS)
    for damaged in (
        b"",
        whole[:5],
        whole[:-1],
        b"\x28\xb5\x2f\xfd" + whole,
        whole[:4] + b"\xff\xff\xff\xff" + whole[8:],
    ):
        with pytest.raises(ManifestError):
            frame_of(damaged)


def test_a_manifest_of_an_earlier_version_names_all_sockets() -> None:
    earlier = msgspec.json.decode(encode_manifest(MANIFEST))
    names = [f"run/{n}" for n in range(3 * NAMED_SOCKETS)]
    earlier["contents"]["sockets"] = names
    del earlier["contents"]["more_sockets"]
    read = decode_manifest(msgspec.json.encode(earlier)).contents
    assert (read.sockets, read.more_sockets) == (tuple(names), 0)
    assert frame_of(encode_frame(read)) == read


def test_contents_of_which_the_manifest_could_not_be_read_are_refused() -> None:
    path = "x" * 4096
    many = MAX_MANIFEST // len(path)
    with pytest.raises(ManifestError, match=f"{many} deletions, .* manifest of 64 MiB"):
        encode_frame(msgspec.structs.replace(CONTENTS, deletions=(path,) * many))
    large = msgspec.structs.replace(CONTENTS, deletions=(path,) * (many - 300))
    encode_frame(large)
    assert len(encode_manifest(msgspec.structs.replace(MANIFEST, contents=large))) <= MAX_MANIFEST


def test_only_a_layer_without_anything_in_it_is_empty() -> None:
    nothing = msgspec.structs.replace(CONTENTS, entries=1, content_bytes=0, deletions=())
    assert nothing.empty
    assert msgspec.structs.replace(nothing, sockets=("s",)).empty
    assert not msgspec.structs.replace(nothing, entries=2).empty
    assert not msgspec.structs.replace(nothing, deletions=("a",)).empty
    assert not msgspec.structs.replace(nothing, opaque=("",)).empty
