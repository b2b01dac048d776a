"""Layers with everything in them that an archive must keep, requests for them, and archives forged by hand."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import stat
import struct
import subprocess
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from perdure.api.names import ChainId, InstallationId, Kind, NamespaceUid, NodeId, RuntimeRef, Uid
from perdure.archive.local import LocalStore
from perdure.archive.manifest import Contents, Manifest, encode_frame, encode_manifest
from perdure.plan.world import ArchiveFacts, Workspace
from perdure.reconcile.ports.archives import ArchiveRequest
from perdure.reconcile.ports.engine import Layer

INSTALLATION = InstallationId("7f1e0c9a-cluster")
NODE = NodeId("node-1")
REF = RuntimeRef(Kind.BOT, "default", "bot", Uid("5a0c-uid"), NamespaceUid("ns-uid"))


@dataclass(frozen=True, slots=True)
class Place:
    """A store and an engine's disk: `upper` is a layer, `fresh` an empty one to restore into."""

    base: Path
    store: LocalStore

    @property
    def source(self) -> Layer:
        return self._layer(1)

    @property
    def fresh(self) -> Layer:
        return self._layer(2)

    def _layer(self, n: int) -> Layer:
        return Layer(REF.snapshot_key(n), self.base / "engine" / str(n) / "fs", self.base / "engine" / "staging")

    def archive_file(self, sequence: int = 1) -> Path:
        return self.runtime_folder / f"{sequence}.tar.zst"

    def manifest_file(self, sequence: int = 1) -> Path:
        return self.runtime_folder / f"{sequence}.json"

    @property
    def runtime_folder(self) -> Path:
        return self.store.root / INSTALLATION / REF.namespace / REF.kind.value / REF.name / REF.uid


def make_place(base: Path) -> Place:
    for layer in ("1", "2"):
        (base / "engine" / layer / "fs").mkdir(parents=True)
    (base / "engine" / "staging").mkdir(mode=0o700)
    (base / "store").mkdir(mode=0o700)
    return Place(base, LocalStore(base / "store", NODE, reserve=0))


def request(sequence: int = 1, n: int = 1) -> ArchiveRequest:
    workspace = Workspace(REF.snapshot_key(n), n, "perdure.dev/samples/busybox:1", "sha256:d", ChainId("sha256:c"))
    return ArchiveRequest(INSTALLATION, REF, sequence, NODE, workspace)


def acl(*entries: tuple[int, int, int]) -> bytes:
    """The value of a `system.posix_acl_*` attribute (linux/posix_acl_xattr.h): tag, permissions, id."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


_NOBODY = 0xFFFFFFFF
ACL = acl((1, 7, _NOBODY), (2, 4, 1), (2, 6, 123456), (4, 5, _NOBODY), (16, 7, _NOBODY), (32, 4, _NOBODY))

ODD_NAMES = (
    b"new\nline",
    b"\xff\xfe not UTF-8",
    b"-rf",
    b"--checkpoint-action=exec=false",
    b"back\\slash\\n",
    b"glob*?[a-z]{x}",
    b" spaces at both ends ",
    b"tab\t",
    b"trailing newline\n",
    b"quote'\"",
    b"percent%3D%25",
    b"n" * 255,
    "ünïcode".encode(),
)


def fill(upper: Path) -> None:
    """Every kind of entry, attribute and mark that overlayfs leaves in an upper folder, odd names among them."""
    root = os.fsencode(upper)
    plain = upper / "plain"
    plain.write_bytes(b"plain content\n" * 1000)
    os.chown(plain, 3_000_000_000, 4_000_000_000)
    os.link(plain, upper / "z hard link")
    (upper / "empty folder").mkdir(mode=0o1777)
    (upper / "empty file").touch()
    with (upper / "sparse").open("wb") as file:
        file.seek(16 << 20)
        file.write(b"end")
    _fill_specials(upper)
    deep = upper
    for level in range(120):
        deep = deep / f"level-{level:03}-of-a-deep-tree"
        deep.mkdir()
    (deep / "at the bottom").write_text("deep")
    odd = root + b"/odd"
    os.mkdir(odd)
    for name in ODD_NAMES:
        with open(odd + b"/" + name, "wb") as named:
            named.write(name)
        os.mkdir(odd + b"/dir " + name[:251])
    _fill_overlay_marks(upper)
    _set_times(upper)


def _fill_specials(upper: Path) -> None:
    setuid = upper / "setuid"
    setuid.write_bytes(b"#!")
    os.chown(setuid, 0, 123_456)
    setuid.chmod(0o6755)
    capable = upper / "capable"
    capable.write_bytes(b"\x7fELF")
    os.setxattr(capable, "security.capability", bytes.fromhex("0100000200040000") + bytes(12))
    attributed = upper / "attributed"
    attributed.write_text("x")
    os.setxattr(attributed, "user.a=b%c\n", b"v\n=\0x")
    os.setxattr(attributed, "user.empty", b"")
    os.setxattr(attributed, "user.large", bytes(range(256)) * 12)
    os.setxattr(attributed, "system.posix_acl_access", ACL)
    inheriting = upper / "inheriting"
    inheriting.mkdir()
    os.setxattr(inheriting, "system.posix_acl_default", ACL)
    (inheriting / "child").mkdir(mode=0o700)
    (inheriting / "child" / "file").write_text("x")
    os.removexattr(inheriting / "child" / "file", "system.posix_acl_access")
    os.symlink("plain", upper / "symlink")
    os.symlink("/etc/../" + "t" * 200, upper / "dangling")
    os.link(upper / "symlink", upper / "symlink linked", follow_symlinks=False)
    os.mkfifo(upper / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(upper / "socket"))
    os.mknod(upper / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(upper / "disk", stat.S_IFBLK | 0o660, os.makedev(250, 70_000))


def _fill_overlay_marks(upper: Path) -> None:
    marks = os.fsencode(upper) + b"/deleted"
    os.mkdir(marks)
    for name in (b"file", b"new\nline", b"trailing ", b"\xff", b"glob*\\", b"-X", b"#hash"):
        os.mknod(marks + b"/" + name, stat.S_IFCHR, 0)
    for near in (b"globs", b"fileX", b"trailing"):
        with open(marks + b"/" + near, "wb") as kept:
            kept.write(b"kept, although its name is like that of a deletion")
    opaque = upper / "opaque"
    opaque.mkdir()
    (opaque / "own").write_text("x")
    os.setxattr(opaque, "trusted.overlay.opaque", b"y")
    os.setxattr(upper, "trusted.overlay.impure", b"y")


def _set_times(upper: Path) -> None:
    """Times with nanoseconds, before 1970, and far away; deepest first, so that none changes afterwards."""
    for number, (folder, folders, files) in enumerate(os.walk(os.fsencode(upper), topdown=False)):
        for position, name in enumerate(sorted((*files, *folders))):
            stamp = 1_700_000_000_123_456_789 + number * 1_000_003 + position
            os.utime(folder + b"/" + name, ns=(0, stamp), follow_symlinks=False)
    os.utime(upper / "empty file", ns=(0, -1_500_000_001))
    os.utime(upper / "empty folder", ns=(0, 7_000_000_000_000_000_001))
    os.utime(upper, ns=(0, 1_600_000_000_000_000_007))


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A tar as `tarfile` writes it: valid, and not necessarily harmless."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, *, size: int = 0, link: str = "", **pax: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    info.pax_headers = {key.replace("__", "."): value for key, value in pax.items()}
    return info


def forge(place: Place, good: ArchiveFacts, tar: bytes, *, entries: int | None = None) -> ArchiveFacts:
    """Replace a good archive by one that holds `tar`, with a manifest and a catalogue row that vouch for its hash."""
    manifest = msgspec.json.decode(place.manifest_file().read_bytes(), type=Manifest)
    contents: Contents = msgspec.structs.replace(
        manifest.contents, entries=manifest.contents.entries if entries is None else entries, content_bytes=1 << 20
    )
    packed = subprocess.run(["zstd", "-q", "-c"], input=tar, capture_output=True, check=True).stdout
    data = encode_frame(contents) + packed
    place.archive_file().write_bytes(data)
    forged = msgspec.structs.replace(
        manifest,
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        uncompressed_bytes=len(tar),
        contents=contents,
    )
    place.manifest_file().write_bytes(encode_manifest(forged))
    return replace(
        good,
        sha256=forged.sha256,
        bytes=forged.bytes,
        uncompressed_bytes=forged.uncompressed_bytes,
        entries=contents.entries,
    )
