"""Named network namespaces: made, recognised and removed. Blocking; called by sandboxes in threads.

A name is a file with the namespace bind-mounted on it, as `ip netns` does (ip-netns(8)), so the namespace outlives every
process in it and has a path that stays the same. After a reboot only a plain file, or nothing, is left.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import threading
from enum import StrEnum
from pathlib import Path

CLONE_NEWNET = 0x4000_0000
MS_BIND = 4096
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
NS_GET_NSTYPE = 0xB703
"""ioctl that tells a namespace file's kind (ioctl_ns(2)); other files answer ENOTTY."""
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 1

_libc = ctypes.CDLL(None, use_errno=True)


class NameState(StrEnum):
    """What is under a name."""

    MOUNTED = "mounted"
    PLAIN = "plain"
    """A file without a namespace: left by a reboot, or by somebody killed between making and mounting it."""
    NOTHING = "nothing"


def state(path: Path) -> NameState:
    """What is at `path`. Raises `OSError` where that cannot be told."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return NameState.NOTHING
    try:
        kind = fcntl.ioctl(descriptor, NS_GET_NSTYPE)
    except OSError as error:
        if error.errno == errno.ENOTTY:
            return NameState.PLAIN
        raise
    finally:
        os.close(descriptor)
    return NameState.MOUNTED if kind == CLONE_NEWNET else NameState.PLAIN


def create(path: Path) -> None:
    """A new namespace with its loopback up, under `path`; one that is there already stays. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    if state(path) is NameState.MOUNTED:
        return
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o444))
    failure: list[OSError] = []
    maker = threading.Thread(target=_unshare_and_mount, args=(path, failure), name="netns")
    maker.start()
    maker.join()
    if failure:
        raise failure[0]


def adopt(path: Path, pid: int) -> None:
    """Give the namespace of a live process the name `path`; a name that has a namespace stays. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    if state(path) is NameState.MOUNTED:
        return
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o444))
    source = os.fsencode(f"/proc/{pid}/ns/net")
    _check(_libc.mount(source, os.fsencode(path), None, MS_BIND, None), f"mount the network namespace of process {pid}")


def enter(path: Path) -> None:
    """Move the calling thread, and no other, into the namespace (setns(2)); it should end there. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(descriptor, CLONE_NEWNET), f"enter the network namespace {path}")
    finally:
        os.close(descriptor)


def names(folder: Path) -> list[str]:
    """Every name in `folder`, whatever is under it; no folder has none. Raises `OSError`."""
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        return []


def is_inhabited(path: Path) -> bool:
    """Whether any process lives in the namespace of that name. Raises `OSError` where that cannot be told."""
    if state(path) is not NameState.MOUNTED:
        return False
    wanted, net_dev = path.stat().st_ino, _net_dev(path)
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if _lives_in(process, wanted, net_dev):
                    return True
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
    return False


def _lives_in(process: Path, wanted: int, net_dev: int) -> bool:
    try:
        return (process / "ns/net").stat().st_ino == wanted
    except PermissionError:
        # The process may do what this one may not (ptrace(2), PTRACE_MODE_READ). That does not hide its net/dev, which is
        # one file for each network namespace (fs/proc/proc_net.c).
        return (process / "net/dev").stat().st_ino == net_dev


def _net_dev(path: Path) -> int:
    """The inode of /proc/net/dev in the namespace at `path`."""
    found: list[int | OSError] = []
    visitor = threading.Thread(target=_enter_and_stat, args=(path, found), name="netns")
    visitor.start()
    visitor.join()
    (answer,) = found
    if isinstance(answer, OSError):
        raise answer
    return answer


def _enter_and_stat(path: Path, found: list[int | OSError]) -> None:
    """Runs in a thread of its own, which ends afterwards: setns(2) moves the calling thread alone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(descriptor, CLONE_NEWNET), f"enter the network namespace at {path}")
        finally:
            os.close(descriptor)
        found.append(os.stat("/proc/thread-self/net/dev").st_ino)
    except OSError as error:
        found.append(error)


def remove(path: Path) -> None:
    """Take the name away; the namespace goes with its last process. Nothing there: nothing. Raises `OSError`."""
    while state(path) is NameState.MOUNTED:
        _check(_libc.umount2(os.fsencode(path), MNT_DETACH | UMOUNT_NOFOLLOW), f"umount {path}")
    path.unlink(missing_ok=True)


def _unshare_and_mount(path: Path, failure: list[OSError]) -> None:
    """Runs in a thread of its own, which ends afterwards: unshare(2) moves the calling thread alone."""
    try:
        _check(_libc.unshare(CLONE_NEWNET), "unshare a network namespace")
        _loopback_up()
        source = b"/proc/thread-self/ns/net"
        _check(_libc.mount(source, os.fsencode(path), None, MS_BIND, None), f"mount a network namespace on {path}")
    except OSError as error:
        failure.append(error)


def _loopback_up() -> None:
    """netdevice(7): the flags of `lo` in the calling thread's namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        answer = fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16sh14x", b"lo", 0))
        (flags,) = struct.unpack_from("h", answer, 16)
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def _check(result: int, doing: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot {doing}: {os.strerror(number)}")
