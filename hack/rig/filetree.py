"""What a container's files are, seen from outside: content and metadata of the whole merged tree, without tools in it.

Independent of ``perdure.archive`` on purpose: a mistake in how that looks at files must not hide itself here. Called by
the demo, the end-to-end tests and the random kills.
"""

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class File:
    """One entry. ``same_as`` is the first name of a file that has several; ``content`` a hash, or a link's target."""

    kind: str
    mode: str
    owner: tuple[int, int]
    mtime_ns: int
    size: int
    content: str
    same_as: bytes
    sparse: bool
    xattrs: tuple[tuple[str, bytes], ...]


Tree = dict[bytes, File]


def tree_of(pid: int) -> Tree:
    """Everything that the main process ``pid`` sees as its files, but for what is mounted over them."""
    return read_tree(os.fsencode(f"/proc/{pid}/root"), _mounted_in(pid))


def read_tree(root: bytes, without: frozenset[bytes] = frozenset()) -> Tree:
    """Every entry below ``root`` by its name relative to it; ``without`` are names that are left out with all below."""
    tree: Tree = {}
    first_names: dict[tuple[int, int], bytes] = {}
    waiting = [b""]
    while waiting:
        name = waiting.pop()
        path = root + b"/" + name
        status = os.lstat(path)
        tree[name] = _file(path, status, first_names.setdefault((status.st_dev, status.st_ino), name))
        if stat.S_ISDIR(status.st_mode):
            children = (name + b"/" + child if name else child for child in os.listdir(path))
            waiting += sorted((child for child in children if child not in without), reverse=True)
    return tree


def digest(tree: Tree) -> str:
    """One hash over every entry, in the order of names."""
    hash_ = hashlib.sha256()
    for name in sorted(tree):
        hash_.update(repr((name, tree[name])).encode())
    return hash_.hexdigest()


def difference(before: Tree, after: Tree) -> list[str]:
    """Lines that name every entry that is not the same in both."""
    lines = []
    for name in sorted(before.keys() | after.keys()):
        was, is_ = before.get(name), after.get(name)
        if was != is_:
            lines.append(f"{name!r}:\n    was {was}\n    is  {is_}")
    return lines


def _file(path: bytes, status: os.stat_result, first_name: bytes) -> File:
    mode = status.st_mode
    content, sparse = "", False
    if stat.S_ISREG(mode):
        with open(path, "rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        sparse = status.st_blocks * 512 < status.st_size
    elif stat.S_ISLNK(mode):
        content = os.readlink(path).decode(errors="surrogateescape")
    names = os.listxattr(path, follow_symlinks=False)
    return File(
        kind=stat.filemode(mode)[0],
        mode=stat.filemode(mode),
        owner=(status.st_uid, status.st_gid),
        mtime_ns=status.st_mtime_ns,
        size=0 if stat.S_ISDIR(mode) else status.st_size,
        content=content,
        same_as=first_name if status.st_nlink > 1 and not stat.S_ISDIR(mode) else b"",
        sparse=sparse,
        xattrs=tuple(sorted((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)),
    )


def _mounted_in(pid: int) -> frozenset[bytes]:
    """Names at which something is mounted in the process's mount namespace (proc_pid_mountinfo(5))."""
    found = set()
    for line in Path(f"/proc/{pid}/mountinfo").read_bytes().splitlines():
        target = re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), line.split()[4])
        found.add(target.strip(b"/"))
    return frozenset(found - {b""})
