"""How to reach one containerd, and which part of it is ours. Made by the composition roots, read by the engine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from perdure.api.names import InstallationId

_NAMESPACE = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class ContainerdSettings:
    """Settings of one engine. Raises `ValueError` where a value cannot be used."""

    address: str
    """Path of containerd's gRPC socket."""
    installation: InstallationId
    state_dir: Path
    """Log files and the files that are mounted into containers. Must be the same path for agent and containerd."""
    namespace: str = "perdure"
    """containerd's namespace: nobody else's containers live in it."""
    runc_root: str | None = None
    """runc's own state folder; None: the shim's default, which all containerds of a host share."""
    cgroup_parent: str = "/perdure"
    """Containers' cgroups are `<cgroup_parent>/<container id>` in every hierarchy."""
    snapshotter: str = "overlayfs"
    runtime: str = "io.containerd.runc.v2"

    def __post_init__(self) -> None:
        if not self.address.startswith("/"):
            raise ValueError(f"containerd's address {self.address!r} is not an absolute path of a socket")
        if not _NAMESPACE.fullmatch(self.namespace) or len(self.namespace) > 76:
            raise ValueError(f"{self.namespace!r} is not a containerd namespace (letters, digits, '.', '_', '-')")
        if not self.cgroup_parent.startswith("/") or ".." in self.cgroup_parent.split("/"):
            raise ValueError(f"cgroup parent {self.cgroup_parent!r} is not an absolute path")
        if not self.state_dir.is_absolute():
            raise ValueError(f"state folder {str(self.state_dir)!r} is not an absolute path")
