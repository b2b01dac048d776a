"""Read a file of a container's root file system from its layers, without mounting anything and without ever leaving it.

Used for /etc/passwd and /etc/group, which are a stranger's: symbolic links are resolved inside the tree, nothing but
regular files is opened, and no more than a bound is read. Rules: kernel, Documentation/filesystems/overlayfs.rst
(upper before lower, whiteouts, opaque folders). The layers must not be in use as somebody's upper layer meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_LINKS = 40
"""As the kernel's own limit on symbolic links in one look-up (path_resolution(7))."""


@dataclass(frozen=True, slots=True)
class _Folder:
    """One folder of the merged view: the folders that it is made of, uppermost first."""

    parts: tuple[str, ...]


class UnreadableFile(Exception):
    """The path is there but is no readable regular file of bearable size; the message says what it is."""


def read_file(layers: Sequence[Path], path: str, *, limit: int) -> bytes | None:
    """The content of `path` in the merged view of `layers` (uppermost first); None where there is no such file.

    Raises `UnreadableFile`, or `OSError` where a layer cannot be read.
    """
    root = _Folder(tuple(str(layer) for layer in layers))
    trail: list[_Folder] = [root]
    pending = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    links = 0
    while pending:
        name = pending.pop()
        if name == "..":
            trail = trail[:-1] or [root]
            continue
        found = _look_up(trail[-1], name)
        if found is None:
            return None
        if isinstance(found, _Folder):
            trail.append(found)
            continue
        mode = os.lstat(found).st_mode
        if stat.S_ISLNK(mode):
            links += 1
            if links > MAX_LINKS:
                raise UnreadableFile(f"{path} goes through more than {MAX_LINKS} symbolic links")
            target = os.readlink(found)
            if target.startswith("/"):
                trail = [root]
            pending.extend(part for part in reversed(target.split("/")) if part not in ("", "."))
            continue
        if pending:
            return None
        return _content(found, path, limit)
    raise UnreadableFile(f"{path} is a folder")


def _look_up(folder: _Folder, name: str) -> _Folder | str | None:
    """One step down: a merged folder, the path of something else in its layer, or None."""
    parts: list[str] = []
    for part in folder.parts:
        candidate = os.path.join(part, name)
        try:
            mode = os.lstat(candidate)
        except FileNotFoundError:
            continue
        if stat.S_ISCHR(mode.st_mode) and mode.st_rdev == 0:
            break
        if not stat.S_ISDIR(mode.st_mode):
            if parts:
                break
            return candidate
        parts.append(candidate)
        if _is_opaque(candidate):
            break
    return _Folder(tuple(parts)) if parts else None


def _is_opaque(folder: str) -> bool:
    try:
        return os.getxattr(folder, "trusted.overlay.opaque", follow_symlinks=False) == b"y"
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return False
        raise


def _content(found: str, path: str, limit: int) -> bytes:
    descriptor = os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnreadableFile(f"{path} is no regular file")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UnreadableFile(f"{path} is larger than {limit} bytes")
    return content
