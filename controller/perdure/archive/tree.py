"""What one entry of a tree is, and a digest of a whole tree that does not depend on where it was read from.

The walk of a layer (`survey`) and the reading of a tar (`tarstream`) both speak in `Entry`, in the same order, so that
an archive is compared with its source, and a restored layer with its archive, entry by entry in constant memory.
"""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

FILE, FOLDER, SYMLINK, HARD_LINK, FIFO = b"f", b"d", b"l", b"h", b"p"

_FIXED = struct.Struct(">cHIIQqIII")

MAX_PATH = 4093
"""Longest name, in bytes, that GNU tar can extract: it opens `./<name>`, and PATH_MAX is 4096 with the final NUL."""


class Entry(NamedTuple):
    """One entry. Names are relative, without `./`; the root itself is empty."""

    name: bytes
    kind: bytes
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    """Apparent size in bytes; of files only."""
    mtime_ns: int = 0
    target: bytes = b""
    """Of a symbolic link; of a hard link, the name under which the file comes first."""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    """Sorted by name; only those that `is_portable_xattr`."""


def is_portable_xattr(name: bytes) -> bool:
    """Whether an archive keeps it. Other `security.*` belong to the node (labels of SELinux, IMA and the like)."""
    return name.startswith(b"user.") or name in (
        b"security.capability",
        b"system.posix_acl_access",
        b"system.posix_acl_default",
    )


TAR_XATTR_OPTIONS = (
    # ACLs go as raw attributes: `tar --acls` writes user *names*, which another machine (or a bare jail) reads wrongly.
    "--no-acls",
    "--xattrs",
    "--xattrs-include=user.*",
    "--xattrs-include=security.capability",
    "--xattrs-include=system.posix_acl_*",
)


class TreeDigest:
    """SHA-256 over all entries in order, with how many there were and how many bytes their files hold."""

    __slots__ = ("_hash", "content_bytes", "entries")

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.entries = 0
        self.content_bytes = 0

    def add(self, entry: Entry) -> None:
        name, kind, mode, uid, gid, size, mtime_ns, target, xattrs = entry
        record = _FIXED.pack(kind, mode, uid, gid, size, mtime_ns, len(name), len(target), len(xattrs)) + name + target
        for key, value in xattrs:
            record += struct.pack(">II", len(key), len(value)) + key + value
        self._hash.update(record)
        self.entries += 1
        self.content_bytes += size

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
