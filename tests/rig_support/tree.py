"""What a tree is made of, content and metadata, for tests that compare two of them.

It shares no code with `perdure.archive`, so that neither covers the other's mistakes. `describe` is for a readable
difference, `digest` for carrying a tree's identity across a story (`before == after`).
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

_KEPT_ATTRIBUTES = ("security.capability", "system.posix_acl_access", "system.posix_acl_default")
_OPAQUE = "trusted.overlay.opaque"


def describe(root: Path, *, sockets: bool = False) -> dict[str, tuple[object, ...]]:
    """Every entry by its path (`.` is the root): type, mode, owner, time in ns, attributes, and content or target.

    Deletion marks of overlayfs (character device 0/0) have no metadata worth keeping. Sockets only if asked for.
    """
    found: dict[str, tuple[object, ...]] = {}
    groups: dict[tuple[int, int], str] = {}
    for path in sorted(_walk(os.fsencode(root))):
        name = os.fsdecode(os.path.relpath(path, os.fsencode(root)))
        status = os.lstat(path)
        if stat.S_ISSOCK(status.st_mode) and not sockets:
            continue
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            found[name] = ("deletion",)
            continue
        group = ""
        if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
            group = groups.setdefault((status.st_dev, status.st_ino), name)
        found[name] = (
            oct(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            status.st_rdev,
            group,
            _attributes(path),
            _content(path, status),
        )
    return found


def digest(root: Path, *, sockets: bool = False) -> str:
    """SHA-256 of `describe`."""
    return hashlib.sha256(ascii(sorted(describe(root, sockets=sockets).items())).encode()).hexdigest()


def _walk(root: bytes) -> list[bytes]:
    def fail(error: OSError) -> None:
        raise error

    found = [root]
    for folder, folders, others in os.walk(root, onerror=fail):
        found += [os.path.join(folder, name) for name in (*folders, *others)]
    return found


def _attributes(path: bytes) -> tuple[tuple[str, bytes], ...]:
    names = os.listxattr(path, follow_symlinks=False)
    kept = [name for name in names if name.startswith("user.") or name in _KEPT_ATTRIBUTES or name == _OPAQUE]
    return tuple(sorted((name, os.getxattr(path, name, follow_symlinks=False)) for name in kept))


def _content(path: bytes, status: os.stat_result) -> str:
    if stat.S_ISLNK(status.st_mode):
        return os.fsdecode(os.readlink(path))
    if not stat.S_ISREG(status.st_mode):
        return ""
    hashed = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            hashed.update(piece)
    return hashed.hexdigest()
