r"""The journal's bytes: one line per fsync, `<crc32> <length> <sequence> <JSON>\n`, and how they are read back.

The checksum is of everything after the length; both have 8 hexadecimal digits. The first line (sequence 0) is the
header; each further one is an array of entries. A line is written whole, fsynced, and only then is the next one begun.
So a crash can damage the last line and no other: a bad last line is a write that nobody was told of, and is cut; a bad
line before a good one is damage to what was promised, and is an error.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from perdure.journal.errors import JournalFailed
from perdure.journal.state import Entry, State

FORMAT = "perdure-journal"
VERSION = 1
_PREFIX = 18
"""Bytes before the body: checksum, space, length, space."""

_encoder = msgspec.json.Encoder()
_entries = msgspec.json.Decoder(tuple[Entry, ...])


class Header(msgspec.Struct, frozen=True):
    format: str
    version: int


@dataclass(frozen=True, slots=True)
class Replayed:
    state: State
    frames: int
    """Good frames, the header counted: the next one's sequence."""
    entries: int
    size: int
    """Where the next frame goes: everything after it is a torn write."""
    torn: int
    """How many bytes after `size` are to be cut."""


def encode_entry(entry: Entry) -> bytes:
    return _encoder.encode(entry)


def encode_header() -> bytes:
    return _line(0, _encoder.encode(Header(FORMAT, VERSION)))


def encode_frame(sequence: int, entries: Sequence[bytes]) -> bytes:
    """One frame of encoded entries: it is there entirely or not at all."""
    return _line(sequence, b"[" + b",".join(entries) + b"]")


def _line(sequence: int, payload: bytes) -> bytes:
    body = b"%d %s" % (sequence, payload)
    return b"%08x %08x %s\n" % (zlib.crc32(body), len(body), body)


def _payload(line: bytes, sequence: int) -> bytes | None:
    """The JSON of a line without its newline; None if it is not frame `sequence`, as it was written."""
    body = _body(line)
    if body is None or len(line) != _PREFIX + len(body):
        return None
    number, _, payload = body.partition(b" ")
    return payload if number == b"%d" % sequence else None


def _body(line: bytes) -> bytes | None:
    """The intact body that `line` begins with, if it does: more may follow where the newline itself was damaged."""
    try:
        length = int(line[9 : _PREFIX - 1], 16)
    except ValueError:
        return None
    body = line[_PREFIX : _PREFIX + length]
    return body if line[:_PREFIX] == b"%08x %08x " % (zlib.crc32(body), len(body)) else None


def replay(data: bytes, path: Path) -> Replayed:
    """What the bytes of the journal at `path` say. Raises `JournalFailed` for anything but a torn last line."""
    lines = data.split(b"\n")
    complete, size = lines[:-1], 0  # what follows the last newline is no complete line
    state, entries = State(), 0
    for sequence, line in enumerate(complete):
        payload = _payload(line, sequence)
        if payload is None:
            if sequence == 0 or any(_body(later) is not None for later in complete[sequence:]):
                raise _damaged(path, sequence, size)
            return Replayed(state, sequence, entries, size, len(data) - size)
        if sequence == 0:
            _check_header(payload, path)
        else:
            entries += _apply(state, payload, path, sequence)
        size += len(line) + 1
    if not complete:
        raise _damaged(path, 0, 0)
    return Replayed(state, len(complete), entries, size, len(data) - size)


def _apply(state: State, payload: bytes, path: Path, sequence: int) -> int:
    try:
        entries = _entries.decode(payload)
        for entry in entries:
            state.apply(entry)
    except (msgspec.MsgspecError, ValueError) as error:
        raise JournalFailed(
            f"replaying the node journal {path}: frame {sequence} is intact but cannot be understood ({error}); "
            "run the version of perdure that wrote it"
        ) from error
    return len(entries)


def _check_header(payload: bytes, path: Path) -> None:
    try:
        header = msgspec.json.decode(payload, type=Header)
    except msgspec.MsgspecError as error:
        raise JournalFailed(f"opening the node journal {path}: it has another header ({error})") from error
    if header.format != FORMAT:
        raise JournalFailed(f"opening the node journal {path}: the file is a {header.format!r}, not a {FORMAT!r}")
    if header.version > VERSION:
        raise JournalFailed(
            f"opening the node journal {path}: it was written in format {header.version}, and this program reads "
            f"format {VERSION} at most; run the newer perdure again, never an older one on the same state folder"
        )


def _damaged(path: Path, sequence: int, offset: int) -> JournalFailed:
    where = "its header is missing or damaged" if sequence == 0 else f"frame {sequence} (byte {offset}) is damaged"
    return JournalFailed(
        f"replaying the node journal {path}: {where}, which no crash can do. Nothing was changed. Check the disk; put "
        "a copy of the file back if there is one; else move it aside and start again: what this node remembered is "
        "then taken from the engine and the ledger, and a runtime whose data cannot be found is Blocked, not emptied"
    )
