"""What the mounts of a snapshot say about the disk: which layers it has, where it is written, who has it mounted.

Sources: overlay snapshotter's mounts in containerd (plugins/snapshots/overlay), proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perdure.engine.containerd.messages import Mount

_ESCAPE = re.compile(r"\\([0-7]{3})")
STAGING = "perdure-staging"


CONNECT_SECONDS = 5.0
_CREDENTIALS = struct.Struct("3i")
"""pid, uid, gid."""


class UnseenMounts(Exception):
    """Whether somebody has a snapshot mounted cannot be told; the message says why."""


class NotOverlay(ValueError):
    """The mounts are not of the overlay snapshotter's form; the message shows them."""


@dataclass(frozen=True, slots=True)
class DiskLayers:
    """Folders of one active snapshot."""

    upper: Path
    lowers: tuple[Path, ...]
    """Uppermost first; empty for a snapshot without a parent."""

    @property
    def all(self) -> tuple[Path, ...]:
        return (self.upper, *self.lowers)

    @property
    def containerd_root(self) -> Path:
        """`<root>/<snapshotter>/snapshots/<id>/fs` is how the snapshotter lays out its disk. Raises `NotOverlay`."""
        parts = self.upper.parts
        if len(parts) < 5 or parts[-1] != "fs" or parts[-3] != "snapshots":
            raise NotOverlay(f"{self.upper} is not a folder of containerd's overlay snapshotter")
        return self.upper.parents[3]


def disk_layers(mounts: Sequence[Mount]) -> DiskLayers:
    """The folders behind an active snapshot's mounts: one overlay, or a bind where it has no parent."""
    if len(mounts) == 1 and mounts[0].type == "bind":
        return DiskLayers(Path(mounts[0].source), ())
    if len(mounts) == 1 and mounts[0].type == "overlay":
        options = dict(option.partition("=")[::2] for option in mounts[0].options)
        if "upperdir" in options and "lowerdir" in options:
            return DiskLayers(Path(options["upperdir"]), tuple(Path(p) for p in options["lowerdir"].split(":")))
    raise NotOverlay(f"mounts {mounts!r} are not an active snapshot of containerd's overlay snapshotter")


def is_mounted(upper: Path, mountinfo: str) -> bool:
    """Whether an overlay writes to `upper`, or `upper` itself is mounted somewhere, as `mountinfo` says.

    Sees every task of every containerd that shares the mount namespace, stopped but undeleted ones included.
    """
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, tail = before.split(), after.split()
        if len(fields) < 5 or len(tail) < 3:
            continue
        if tail[0] == "overlay":
            options = (_unescape(option) for option in tail[2].split(","))
            if f"upperdir={upper}" in options:
                return True
        else:
            root = _unescape(fields[3])
            # The root is relative to the file system, which may be mounted below /.
            if root.endswith(f"/snapshots/{upper.parent.name}/fs") and str(upper).endswith(root):
                return True
    return False


def mounts_of_engine(address: str) -> str:
    """The mountinfo of the process that listens on containerd's socket: its shims mount tasks' roots where it lives,
    which need not be where this process lives (unix(7), SO_PEERCRED). Blocking.

    Raises `ConnectionError` or `FileNotFoundError` where nobody listens, `UnseenMounts` where its mounts are hidden.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(CONNECT_SECONDS)
        probe.connect(address)
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, _, _ = _CREDENTIALS.unpack(credentials)
        try:
            return Path(f"/proc/{pid}/mountinfo").read_text()
        except OSError as error:
            raise UnseenMounts(
                f"the mounts of containerd (process {pid}) cannot be seen: {error}; the agent needs root and the "
                "node's process namespace"
            ) from error


def make_staging(layers: DiskLayers, key: str) -> Path:
    """The staging folder for restores into one snapshot, made if need be: ours alone, on the layer's file system.

    Blocking. `key` is a snapshot key of ours: no separators are in it.

    It lies beside the snapshotter's folder: anything below `snapshots/` that the snapshotter does not know it deletes.
    Raises `NotOverlay` or `OSError`.
    """
    own = layers.containerd_root / STAGING / key
    for staging in (own.parent, own):
        staging.mkdir(mode=0o700, exist_ok=True)
        state = os.lstat(staging)
        if state.st_uid != os.geteuid() or state.st_mode & 0o7777 != 0o700 or not stat.S_ISDIR(state.st_mode):
            raise NotOverlay(f"{staging} is not a folder of ours with mode 0700; remove or correct it")
        if state.st_dev != os.lstat(layers.upper).st_dev:
            raise NotOverlay(
                f"{staging} is not on the file system of {layers.upper}; a rename between them cannot work"
            )
    return own


def remove_staging(layers: DiskLayers, key: str) -> None:
    """Remove it with what a killed restore left in it, following no link. Not there: nothing. Blocking."""
    shutil.rmtree(layers.containerd_root / STAGING / key, ignore_errors=False, onerror=_unless_gone)


def _unless_gone(_function: object, _path: object, info: tuple[type[BaseException], BaseException, object]) -> None:
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), text)
