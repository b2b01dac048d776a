"""The strict reader takes what GNU tar writes for us, and says `BadStream` (and nothing else) to everything else."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.archive.survey import survey
from perdure.archive.tarstream import BadStream, Stream, entries
from perdure.archive.tree import FILE, FOLDER, HARD_LINK, SYMLINK, TAR_XATTR_OPTIONS, Entry, TreeDigest


def quiet() -> None:
    """Nobody watches the progress of a test."""


def read(data: bytes, *, limit: int | None = None, forwarded: list[bytes] | None = None) -> list[Entry]:
    fd = os.memfd_create("stream")
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(fd, 0, os.SEEK_SET)
        return list(entries(Stream(fd, limit, quiet, None if forwarded is None else forwarded.append)))
    finally:
        os.close(fd)


def gnu_tar(folder: Path) -> bytes:
    command = ["tar", "--create", "--file=-", "--format=posix", "--pax-option=delete=atime,delete=ctime"]
    command += ["--numeric-owner", *TAR_XATTR_OPTIONS, "--sparse", "--sort=name", f"--directory={folder}", "."]
    return subprocess.run(command, capture_output=True, check=True).stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"content" * 100)
    os.utime(tmp_path / "a" / "file", ns=(0, -1_500_000_001))
    os.link(tmp_path / "a" / "file", tmp_path / "linked")
    (tmp_path / "link").symlink_to("x" * 150)
    (tmp_path / ("n" * 200)).touch(mode=0o600)
    with (tmp_path / "sparse").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    with open(os.fsencode(tmp_path) + b"/\xff\n", "wb"):
        pass
    return tmp_path


def test_it_reads_what_gnu_tar_writes_as_a_walk_sees_it(tree: Path) -> None:
    found = read(gnu_tar(tree))
    assert [(entry.name, entry.kind) for entry in found] == [
        (b"", FOLDER),
        (b"a", FOLDER),
        (b"a/file", FILE),
        (b"link", SYMLINK),
        (b"linked", HARD_LINK),
        (b"n" * 200, FILE),
        (b"sparse", FILE),
        (b"\xff\n", FILE),
    ]
    digest = TreeDigest()
    for entry in found:
        digest.add(entry)
    assert digest.hexdigest() == survey(os.fsencode(tree), quiet).digest.hexdigest()


def test_every_byte_is_passed_on_once(tree: Path) -> None:
    (tree / "large").write_bytes(os.urandom(3 << 20))
    data, forwarded = gnu_tar(tree), list[bytes]()
    read(data, forwarded=forwarded)
    assert b"".join(forwarded) == data


def test_nothing_of_a_refused_entry_is_passed_on(tree: Path) -> None:
    (tree / "b").write_bytes(bytes(3 << 20))
    data = bytearray(gnu_tar(tree))
    at = data.index(b"./linked\0")
    data[at + 2] = ord("X")  # its checksum is wrong now
    forwarded: list[bytes] = []
    with pytest.raises(BadStream, match="damaged"):
        read(bytes(data), forwarded=forwarded)
    assert 0 < len(b"".join(forwarded)) <= at


def test_every_cut_is_noticed(tree: Path) -> None:
    data = gnu_tar(tree)
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512 + 1024  # the last block with content, and the end mark
    for length in range(0, end, 512):
        with pytest.raises(BadStream):
            read(data[:length])
    assert len(read(data[:end])) == 8


def test_what_follows_the_end_is_refused(tree: Path) -> None:
    with pytest.raises(BadStream, match="follows the end"):
        read(gnu_tar(tree) + b"\1")


def test_a_stream_over_its_limit_is_refused(tree: Path) -> None:
    data = gnu_tar(tree)
    read(data, limit=len(data))
    with pytest.raises(BadStream, match="longer than"):
        read(data, limit=len(data) - 1)


def _tar(kind: bytes, name: str = "./x", **pax: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.pax_headers = kind, {key.replace("__", "."): value for key, value in pax.items()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"Z"])
def test_types_that_are_never_restored_are_refused(kind: bytes) -> None:
    with pytest.raises(BadStream, match="never restored"):
        read(_tar(kind))


@pytest.mark.parametrize("name", ["x", "/x", "../x", "./../x", "./a/../../x", "./a//x", "./a/./x", "./", "./x/", "."])
def test_names_of_files_that_are_not_within_a_tree_are_refused(name: str) -> None:
    data = _tar(tarfile.REGTYPE, "./a/b/c/" + "y" * 150, path=name)
    with pytest.raises(BadStream, match="path"):
        read(data)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SCHILY__xattr__trusted__overlay__opaque", "y"),
        ("SCHILY__xattr__security__selinux", "x"),
        ("SCHILY__acl__access", "user::rwx"),
        ("hdrcharset", "BINARY"),
        ("size", "-1"),
        ("uid", "4294967296"),
        ("mtime", "1e9"),
        ("mtime", "9" * 20),
        ("GNU__sparse__major", "0"),
    ],
)
def test_records_that_our_writer_does_not_make_are_refused(key: str, value: str) -> None:
    with pytest.raises(BadStream):
        read(_tar(tarfile.REGTYPE, **{key: value}))


def small_stream() -> bytes:
    return _tar(tarfile.REGTYPE, "./" + "f" * 120, mtime="1700000000.5", uid="3000000")


@given(st.binary(max_size=3000))
def test_no_bytes_make_it_fail_otherwise(data: bytes) -> None:
    with pytest.raises(BadStream):
        read(data)


@given(st.integers(0, len(small_stream()) - 1), st.integers(1, 255))
def test_no_changed_byte_makes_it_fail_otherwise(at: int, change: int) -> None:
    data = bytearray(small_stream())
    data[at] ^= change
    try:
        found = read(bytes(data))
    except BadStream:
        return
    assert [entry.kind for entry in found] in ([FILE], [])


@given(st.lists(st.binary(min_size=1, max_size=40).filter(lambda name: b"/" not in name and b"\0" not in name)))
def test_a_digest_depends_on_every_name(names: list[bytes]) -> None:
    def digest_of(chosen: Iterator[bytes]) -> str:
        digest = TreeDigest()
        for name in chosen:
            digest.add(Entry(name, FILE))
        return digest.hexdigest()

    whole = digest_of(iter(names))
    for left_out in range(len(names)):
        assert digest_of(name for position, name in enumerate(names) if position != left_out) != whole
