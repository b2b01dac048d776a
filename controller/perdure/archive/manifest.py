"""The manifest of an archive: what it is, where it came from, and what of the layer a tar cannot carry.

`Contents` stands at the head of the archive itself, in a frame that zstd skips; `Manifest` (a file beside it) adds what
is known only once the archive is written. Paths are percent-encoded (RFC 3986): names may be any bytes.
"""

from __future__ import annotations

import os
import struct
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

import msgspec

FORMAT_VERSION: Final = 1
_SKIPPABLE_MAGIC = 0x184D2A50  # zstd compression format (RFC 8878), section 3.1.2
_FRAME_HEADER = struct.Struct("<II")
MAX_MANIFEST: Final = 64 << 20
"""Bytes of the largest manifest that is written, and that the agent itself reads: a list of about a million deletions."""
_MAX_FRAME: Final = 256 << 20
"""Bytes of the largest frame that a worker reads."""
NAMED_SOCKETS: Final = 100


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Whose layer it was, and on which node."""

    installation: str
    kind: str
    namespace: str
    namespace_uid: str
    name: str
    uid: str
    sequence: int
    node_id: str
    snapshot_key: str
    image: str
    image_digest: str
    chain_id: str


class DeviceNode(msgspec.Struct, frozen=True, kw_only=True):
    """A device node that is no deletion mark. Kept here and made by our own code: a tar with one in it is refused."""

    path: str
    block: bool
    major: int
    minor: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was known before the first byte was written."""

    source: Source
    consistency: str
    """`stopped`: nothing ran on the layer."""
    created: str
    """RFC 3339, UTC. For people: archives are ordered by sequence."""
    tools: dict[str, str]
    entries: int
    """Entries of the tar, the root folder among them."""
    content_bytes: int
    """Sum of the apparent sizes of its files."""
    tree: str
    """`tree.TreeDigest` of the source, without what is listed below."""
    deletions: tuple[str, ...] = ()
    """Whiteouts (overlayfs.rst): paths of the image that the container removed."""
    opaque: tuple[str, ...] = ()
    """Folders that hide what the image has under the same path."""
    devices: tuple[DeviceNode, ...] = ()
    sockets: tuple[str, ...] = ()
    """Left out: a socket without its process is nothing. The first `NAMED_SOCKETS` (in earlier archives: all)."""
    more_sockets: int = 0
    """Left out as well, and not named: whoever writes to a layer can make any number of them."""
    changes: str = ""
    """`survey.Survey.changes` of the source: whether anything in it was changed since. Empty: not recorded."""

    @property
    def empty(self) -> bool:
        """The container wrote nothing: only the layer's root folder is there."""
        return self.entries == 1 and not (self.deletions or self.opaque or self.devices)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """An archive counts once this is on the disk: it is written last, after the archive was read back."""

    format_version: int = FORMAT_VERSION
    sha256: str
    """Of the whole archive file."""
    bytes: int
    """Size of the archive file."""
    uncompressed_bytes: int
    """Size of the tar."""
    empty: bool
    contents: Contents


class ManifestError(ValueError):
    """Not a manifest, or not one of a format that this version reads."""


def encode_path(path: bytes) -> str:
    return quote_from_bytes(path, safe="/ !#$&'()*+,:;=@[]{}^~")


def decode_path(path: str) -> bytes:
    """The bytes of a relative path. Raises `ManifestError` for one that could lead out of a tree."""
    decoded = unquote_to_bytes(path)
    if (decoded and any(part in (b"", b".", b"..") for part in decoded.split(b"/"))) or b"\0" in decoded:
        raise ManifestError(f"{path!r} is no path within a layer")
    return decoded


def encode_manifest(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode_manifest(data: bytes) -> Manifest:
    """Raises `ManifestError`."""
    try:
        version = msgspec.json.decode(data, type=_Versioned).format_version
        if version != FORMAT_VERSION:
            raise ManifestError(f"format version {version} is not known here (only {FORMAT_VERSION})")
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise ManifestError(f"not a manifest: {error}") from error


class _Versioned(msgspec.Struct, frozen=True):
    format_version: int


def encode_frame(contents: Contents) -> bytes:
    """Raises `ManifestError` if a manifest with these contents would be larger than `MAX_MANIFEST`."""
    payload = msgspec.json.encode(contents)
    longest = Manifest(sha256="0" * 64, bytes=2**63, uncompressed_bytes=2**63, empty=False, contents=contents)
    size = len(encode_manifest(longest))
    if size > MAX_MANIFEST:
        raise ManifestError(
            f"its {len(contents.deletions)} deletions, {len(contents.devices)} device nodes and {len(contents.opaque)} opaque "
            f"folders would make a manifest of {size >> 20} MiB, which is more than the {MAX_MANIFEST >> 20} MiB that one may "
            "have; remove some"
        )
    return _FRAME_HEADER.pack(_SKIPPABLE_MAGIC, len(payload)) + payload


def read_frame(fd: int) -> Contents:
    """`Contents` at the head of an archive file. Raises `ManifestError`."""
    header = os.pread(fd, _FRAME_HEADER.size, 0)
    if len(header) < _FRAME_HEADER.size:
        raise ManifestError("the file is shorter than a frame header")
    magic, length = _FRAME_HEADER.unpack(header)
    if magic != _SKIPPABLE_MAGIC or length > _MAX_FRAME:
        raise ManifestError("the file does not begin with the frame that says what it is")
    payload = bytearray()
    while len(payload) < length:
        piece = os.pread(fd, length - len(payload), _FRAME_HEADER.size + len(payload))
        if not piece:
            raise ManifestError("the file ends within its first frame")
        payload += piece
    try:
        return msgspec.json.decode(payload, type=Contents)
    except msgspec.DecodeError as error:
        raise ManifestError(f"the first frame is damaged: {error}") from error
