"""The independent walk of a layer: what is really there, in the order in which GNU tar's `--sort=name` visits it.

Called by `writer` (before tar, which makes its own walk) and by `extractor` (after it). Goes through folder descriptors
only and follows no link. Overlay's marks are described in the kernel's Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import hashlib
import os
import resource
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from perdure.archive.manifest import DeviceNode, encode_path
from perdure.archive.tree import (
    FIFO,
    FILE,
    FOLDER,
    HARD_LINK,
    MAX_PATH,
    SYMLINK,
    Entry,
    TreeDigest,
    is_portable_xattr,
)

_OPAQUE = b"trusted.overlay.opaque"
_CHANGE = struct.Struct(">Qq")
_HARMLESS = frozenset(b"trusted.overlay." + name for name in (b"origin", b"impure", b"uuid", b"nlink", b"upper"))


class Unarchivable(Exception):
    """The layer has something in it that an archive cannot hold without losing a part of it."""


@dataclass(slots=True)
class Survey:
    """What a walk found. Paths are bytes, relative to the root."""

    digest: TreeDigest = field(default_factory=TreeDigest)
    deletions: list[bytes] = field(default_factory=list)
    opaque: list[bytes] = field(default_factory=list)
    devices: list[DeviceNode] = field(default_factory=list)
    device_paths: list[bytes] = field(default_factory=list)
    sockets: list[bytes] = field(default_factory=list)
    _changes: hashlib._Hash = field(default_factory=hashlib.sha256)

    def note_change(self, status: os.stat_result) -> None:
        self._changes.update(_CHANGE.pack(status.st_ino, status.st_ctime_ns))

    @property
    def changes(self) -> str:
        """A digest of which inodes there are and when each was last changed, in the order of the walk.

        No program can set that time (inode(7), ctime): a file that was written is noticed though it has its size and
        its time of modification back.
        """
        return self._changes.hexdigest()

    @property
    def outside_tar(self) -> list[bytes]:
        """What must not go into the tar."""
        return [*self.deletions, *self.device_paths, *self.sockets]


@dataclass(slots=True)
class _OpenFolder:
    fd: int
    name: bytes
    children: Iterator[bytes]


def survey(root: bytes, tick: Callable[[], None]) -> Survey:
    """Walk the tree under `root`. `tick` is called now and then. Raises `OSError`, `Unarchivable`."""
    _allow_many_descriptors()
    found = Survey()
    first_names: dict[tuple[int, int], bytes] = {}
    stack = [_open_folder(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW), b"", found)]
    try:
        while stack:
            folder = stack[-1]
            leaf = next(folder.children, None)
            if leaf is None:
                os.close(stack.pop().fd)
                tick()
                continue
            name = folder.name + b"/" + leaf if folder.name else leaf
            if len(name) > MAX_PATH:
                raise Unarchivable(
                    f"{encode_path(name[:200])}… is a path of {len(name)} bytes; tar extracts {MAX_PATH}"
                )
            status = os.stat(leaf, dir_fd=folder.fd, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                stack.append(_open_folder(os.open(leaf, flags, dir_fd=folder.fd), name, found))
            else:
                _add_leaf(found, first_names, folder.fd, leaf, name, status)
    finally:
        for folder in stack:
            os.close(folder.fd)
    return found


def _allow_many_descriptors() -> None:
    """One descriptor is open per level of depth."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _open_folder(fd: int, name: bytes, found: Survey) -> _OpenFolder:
    """Takes `fd` over; adds the folder itself to `found`."""
    try:
        status = os.fstat(fd)
        found.note_change(status)
        xattrs = _xattrs(fd, name, found)
        found.digest.add(_entry(name, FOLDER, status, xattrs=xattrs))
        return _OpenFolder(fd, name, iter(sorted(map(os.fsencode, os.listdir(fd)))))
    except BaseException:
        os.close(fd)
        raise


def _add_leaf(
    found: Survey,
    first_names: dict[tuple[int, int], bytes],
    parent: int,
    leaf: bytes,
    name: bytes,
    status: os.stat_result,
) -> None:
    found.note_change(status)
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFCHR and status.st_rdev == 0:
        found.deletions.append(name)
        return
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        found.device_paths.append(name)
        found.devices.append(_device(name, status))
        return
    if kind == stat.S_IFSOCK:
        found.sockets.append(name)
        return
    if status.st_nlink > 1:
        first = first_names.setdefault((status.st_dev, status.st_ino), name)
        if first is not name:
            found.digest.add(Entry(name, HARD_LINK, target=first))
            return
    xattrs = _xattrs(b"/proc/self/fd/%d/%b" % (parent, leaf), name, found)
    if kind == stat.S_IFREG:
        found.digest.add(_entry(name, FILE, status, size=status.st_size, xattrs=xattrs))
    elif kind == stat.S_IFLNK:
        found.digest.add(_entry(name, SYMLINK, status, target=os.readlink(leaf, dir_fd=parent), xattrs=xattrs))
    elif kind == stat.S_IFIFO:
        found.digest.add(_entry(name, FIFO, status, xattrs=xattrs))
    else:
        raise Unarchivable(f"{encode_path(name)} is of unknown type {kind:#o}")


def _entry(
    name: bytes,
    kind: bytes,
    status: os.stat_result,
    *,
    size: int = 0,
    target: bytes = b"",
    xattrs: tuple[tuple[bytes, bytes], ...],
) -> Entry:
    mode = 0 if kind == SYMLINK else stat.S_IMODE(status.st_mode)
    return Entry(name, kind, mode, status.st_uid, status.st_gid, size, status.st_mtime_ns, target, xattrs)


def _device(name: bytes, status: os.stat_result) -> DeviceNode:
    return DeviceNode(
        path=encode_path(name),
        block=stat.S_ISBLK(status.st_mode),
        major=os.major(status.st_rdev),
        minor=os.minor(status.st_rdev),
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
    )


def _xattrs(where: int | bytes, name: bytes, found: Survey) -> tuple[tuple[bytes, bytes], ...]:
    """The attributes that an archive keeps; notes opaque folders; refuses what would be stored half."""
    follow = isinstance(where, int)
    keys = os.listxattr(where, follow_symlinks=follow)
    if not keys:
        return ()
    kept = []
    for text in keys:
        key = os.fsencode(text)
        if is_portable_xattr(key):
            kept.append((key, os.getxattr(where, key, follow_symlinks=follow)))
        elif key == _OPAQUE and os.getxattr(where, key, follow_symlinks=follow) == b"y":
            found.opaque.append(name)
        elif key.startswith(b"trusted.") and key not in _HARMLESS:
            raise Unarchivable(
                f"{encode_path(name) or '/'} has the attribute {text}: with overlay's redirect_dir, metacopy or xwhiteouts "
                "in use a layer does not hold its own data; turn them off on this node"
            )
    return tuple(sorted(kept))


@contextmanager
def open_parent(root: int, path: bytes) -> Iterator[tuple[int, bytes]]:
    """The folder that `path` is in, opened component by component without following a link, and the last name."""
    *parents, leaf = path.split(b"/")
    fd = os.dup(root)
    try:
        for part in parents:
            deeper = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = deeper
        yield fd, leaf
    finally:
        os.close(fd)
