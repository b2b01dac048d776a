"""A strict reader of the tar streams that our own writer makes, and of nothing else.

GNU tar accepts truncated streams and makes device nodes; this reader says exactly what a stream holds, before any of it
reaches tar. Source of the format: POSIX.1-2017 pax(1), "ustar Interchange Format" and "pax Extended Header"; GNU tar
manual, "Storing Sparse Files" (version 1.0).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from zlib import adler32

from perdure.archive.tree import FIFO, FILE, FOLDER, HARD_LINK, MAX_PATH, SYMLINK, Entry, is_portable_xattr

_BLOCK = 512
_ZERO = bytes(_BLOCK)
_CHUNK = 1 << 20
_MAX_EXTENDED_HEADER = 16 << 20
_KINDS = {b"0": FILE, b"5": FOLDER, b"2": SYMLINK, b"1": HARD_LINK, b"6": FIFO}
_XATTR = b"SCHILY.xattr."
_SPARSE_MAJOR, _SPARSE_MINOR = b"GNU.sparse.major", b"GNU.sparse.minor"
_SPARSE_NAME, _SPARSE_SIZE = b"GNU.sparse.name", b"GNU.sparse.realsize"
_KNOWN_RECORDS = frozenset(
    (
        *(b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"),
        *(_SPARSE_MAJOR, _SPARSE_MINOR, _SPARSE_NAME, _SPARSE_SIZE),
    )
)
_MTIME = re.compile(rb"(-?)(\d+)(?:\.(\d{1,9}))?")


class BadStream(Exception):
    """The stream is not one that our writer makes: damaged, cut off, or somebody else's."""


class Stream:
    """Bytes from a descriptor. With `forward`, each chunk is passed on after everything in it was accepted."""

    __slots__ = ("_at", "_chunk", "_fd", "_forward", "_limit", "_tick", "length")

    def __init__(
        self, fd: int, limit: int | None, tick: Callable[[], None], forward: Callable[[bytes], None] | None = None
    ) -> None:
        self._fd = fd
        self._limit = limit
        self._tick = tick
        self._forward = forward
        self._chunk = b""
        self._at = 0
        self.length = 0

    def _refill(self) -> bool:
        self._pass_on()
        self._chunk = os.read(self._fd, _CHUNK)
        self._at = 0
        self.length += len(self._chunk)
        if self._limit is not None and self.length > self._limit:
            raise BadStream(f"it is longer than the {self._limit} bytes that its manifest says")
        self._tick()
        return bool(self._chunk)

    def _pass_on(self) -> None:
        if self._forward is not None and self._chunk:
            self._forward(self._chunk)

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        end = self._at + count
        if end <= len(self._chunk):
            taken = self._chunk[self._at : end]
            self._at = end
            return taken
        pieces = []
        while count:
            if self._at == len(self._chunk) and not self._refill():
                raise BadStream("it is cut off")
            piece = self._chunk[self._at : self._at + count]
            self._at += len(piece)
            count -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def skip(self, count: int) -> None:
        while count:
            if self._at == len(self._chunk) and not self._refill():
                raise BadStream("it is cut off")
            step = min(count, len(self._chunk) - self._at)
            self._at += step
            count -= step

    def finish(self) -> None:
        """Read to the end, which must be padding."""
        while True:
            rest = self._chunk[self._at :]
            if rest.count(0) != len(rest):
                raise BadStream("something follows the end of the archive")
            self._at = len(self._chunk)
            if not self._refill():
                return


def entries(stream: Stream) -> Iterator[Entry]:
    """Every entry up to the end mark, which must be there and be followed by padding only. Raises `BadStream`.

    An entry is yielded before its content is read (and passed on), so the reader can refuse it in time.
    """
    records: dict[bytes, bytes] = {}
    while True:
        block = stream.take(_BLOCK)
        if block == _ZERO:
            if records or stream.take(_BLOCK) != _ZERO:
                raise BadStream("its end mark is damaged")
            stream.finish()
            return
        if _octal(block[148:156]) != _checksum(block):
            raise BadStream("a header is damaged")
        size = _octal(block[124:136])
        kind = block[156:157]
        if kind == b"x":
            if records or size > _MAX_EXTENDED_HEADER:
                raise BadStream("an extended header is out of place or too large")
            records = _parse_records(stream.take(size))
            stream.skip(-size % _BLOCK)
            continue
        if kind not in _KINDS:
            raise BadStream(f"it has an entry of type {kind!r}, which is never restored")
        stored = _decimal(records[b"size"]) if b"size" in records else size
        entry = _entry(block, _KINDS[kind], stored, records)
        if stored and entry.kind != FILE:
            raise BadStream("an entry that is no file has content")
        records = {}
        yield entry
        stream.skip(stored + -stored % _BLOCK)


def _entry(block: bytes, kind: bytes, stored: int, records: dict[bytes, bytes]) -> Entry:
    path = records.get(b"path") or _ustar_path(block)
    if _SPARSE_MAJOR in records:
        if (records[_SPARSE_MAJOR], records.get(_SPARSE_MINOR)) != (b"1", b"0") or kind != FILE:
            raise BadStream("a sparse file has a map of an unknown version")
        path = records.get(_SPARSE_NAME, b"")
        stored = _decimal(records.get(_SPARSE_SIZE, b""))
    name = _relative(path, is_folder=kind == FOLDER)
    target = b""
    if kind in (SYMLINK, HARD_LINK):
        target = records.get(b"linkpath") or block[157:257].rstrip(b"\0")
    if kind == HARD_LINK:
        return Entry(name, HARD_LINK, target=_relative(target, is_folder=False))
    mode = 0 if kind == SYMLINK else _octal(block[100:108])
    uid = _decimal(records[b"uid"]) if b"uid" in records else _octal(block[108:116])
    gid = _decimal(records[b"gid"]) if b"gid" in records else _octal(block[116:124])
    mtime = _nanoseconds(records[b"mtime"]) if b"mtime" in records else _octal(block[136:148]) * 1_000_000_000
    if mode > 0o7777 or max(uid, gid) >= 1 << 32 or max(stored, abs(mtime)) >= 1 << 63:
        raise BadStream("an entry has a mode, owner, size or time that no file can have")
    return Entry(name, kind, mode, uid, gid, stored, mtime, target, _xattrs(records))


def _ustar_path(block: bytes) -> bytes:
    prefix = block[345:500].rstrip(b"\0")
    name = block[:100].rstrip(b"\0")
    return prefix + b"/" + name if prefix else name


def _relative(path: bytes, *, is_folder: bool) -> bytes:
    if not path.startswith(b"./") or path.endswith(b"/") != is_folder or b"\0" in path:
        raise BadStream(f"{path[:200]!r} is not a path that our writer makes")
    name = path[2:-1] if is_folder else path[2:]
    if is_folder and path == b"./":
        return b""
    framed = b"/" + name + b"/"
    if len(name) > MAX_PATH or b"//" in framed or b"/./" in framed or b"/../" in framed:
        raise BadStream(f"{path[:200]!r} is not a path within a layer")
    return name


def _xattrs(records: dict[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    """GNU tar writes `=` in the name of an attribute as %3D, and % as %25 (src/xheader.c)."""
    found = [
        (key[len(_XATTR) :].replace(b"%3D", b"=").replace(b"%25", b"%"), value)
        for key, value in records.items()
        if key.startswith(_XATTR)
    ]
    if not found:
        return ()
    for key, _ in found:
        if not is_portable_xattr(key):
            raise BadStream(f"an entry has the attribute {key[:200]!r}, which is never restored")
    return tuple(sorted(found))


def _parse_records(data: bytes) -> dict[bytes, bytes]:
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        end = at + _decimal(data[at:space]) if space > 0 else 0
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end <= space or end > len(data) or data[end - 1] != 0x0A or not equals:
            raise BadStream("an extended header is damaged")
        if key in records or not (key in _KNOWN_RECORDS or key.startswith(_XATTR)):
            raise BadStream(f"an extended header has the record {key[:200]!r}")
        records[key] = value
        at = end
    return records


def _checksum(block: bytes) -> int:
    """The sum of all bytes, the checksum's own eight taken as blanks.

    The low half of Adler-32 is 1 + the sum modulo 65521, so it is exact for 256 bytes; 20 times as fast as `sum`.
    """
    blank = block[:148] + b"        " + block[156:]
    return (adler32(blank[:256]) & 0xFFFF) + (adler32(blank[256:]) & 0xFFFF) - 2


@lru_cache(maxsize=4096)
def _octal(field: bytes) -> int:
    digits = field.rstrip(b"\0 ")
    if not digits.isdigit():
        raise BadStream("a header has a field that is no number")
    try:
        return int(digits, 8)
    except ValueError as error:
        raise BadStream("a header has a field that is no octal number") from error


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise BadStream("an extended header has a value that is no number")
    return int(digits)


def _nanoseconds(text: bytes) -> int:
    match = _MTIME.fullmatch(text)
    if match is None:
        raise BadStream("an extended header has a value that is no time")
    sign, seconds, fraction = match.groups()
    value = int(seconds) * 1_000_000_000 + int((fraction or b"").ljust(9, b"0"))
    return -value if sign else value
