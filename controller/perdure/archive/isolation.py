"""System calls that keep an archive job apart from the node, and that the standard library lacks. Worker only.

Sources: unshare(2), pid_namespaces(7), mount(2), prctl(2), renameat2(2), syncfs(2).
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
from types import FrameType

_CLONE_NEWNS = 0x00020000
_CLONE_NEWPID = 0x20000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 4096, 16384, 1 << 18
_PR_SET_PDEATHSIG = 1
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p)
_libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _die_with_parent() -> None:
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def isolate(parent: int) -> None:
    """Go on in a new child, in a private mount namespace and a new pid namespace; the caller becomes its keeper.

    `parent`: the pid of who started this process. Whoever of parent, keeper and child dies, the kernel kills all that
    is below it: the child is process 1 of its namespace, so tar, zstd and the jail die with it, and mounts go too.
    """
    _die_with_parent()
    if os.getppid() != parent:
        os._exit(1)  # the parent died before prctl took effect
    _checked(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWPID), "unshare")
    _checked(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "mount --make-rprivate /")
    keeper_alive, held_by_keeper = os.pipe()
    child = os.fork()
    if child:
        os.close(keeper_alive)
        _keep(child)
    os.close(held_by_keeper)
    _die_with_parent()
    if select.select([keeper_alive], [], [], 0)[0]:
        os._exit(1)  # end of file: the keeper died before prctl took effect
    os.close(keeper_alive)
    # bubblewrap looks its child up in /proc by the pid that this namespace knows it under.
    _checked(_libc.mount(b"proc", b"/proc", b"proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, None), "mount /proc")


def _keep(child: int) -> None:
    """Wait for the child and end as it ended. SIGTERM kills it, and this returns only when all below it is gone."""

    def kill_child(_number: int, _frame: FrameType | None) -> None:
        os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, kill_child)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # before the pid is given back, and could become somebody else's
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def bind_read_only(path: bytes) -> None:
    """Make `path` read-only for this job: reading does not even change access times. Needs the private namespace."""
    _checked(_libc.mount(path, path, None, _MS_BIND, None), "mount --bind")
    flags = _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    _checked(_libc.mount(b"none", path, None, flags, None), "mount -o remount,bind,ro")


def exchange(one: bytes, other: bytes) -> None:
    """Swap two paths of one file system, atomically."""
    _checked(_libc.renameat2(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE), "renameat2(RENAME_EXCHANGE)")


def sync_file_system(fd: int) -> None:
    """Write back everything of the file system that `fd` is on; returns when it is on the disk."""
    _checked(_libc.syncfs(fd), "syncfs")
