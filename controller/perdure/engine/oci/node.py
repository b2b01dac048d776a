"""What this node's kernel offers to containers: looked up once, when an engine is made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_APPARMOR_PROFILES = ("cri-containerd.apparmor.d", "docker-default")
"""The default profiles that containerd's and Docker's own tools load; the first one that is loaded is used."""


@dataclass(frozen=True, slots=True)
class NodeFeatures:
    machine: str
    """As `uname -m` says it."""
    cgroup2: bool
    """Only the unified hierarchy is there; a hybrid of both counts as version 1."""
    swap_accounting: bool
    apparmor_profile: str
    """Name of a loaded profile for containers, or empty."""
    timezone: str
    """Name of the node's time zone (`Europe/Berlin`), or empty if it cannot be told."""
    resolv_conf: Path
    """The file that names the node's real name servers."""


def detect(root: Path = Path("/")) -> NodeFeatures:
    """Look at the node whose file system is at `root`."""
    cgroup2 = (root / "sys/fs/cgroup/cgroup.controllers").exists()
    memsw = root / "sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"
    return NodeFeatures(
        machine=os.uname().machine,
        cgroup2=cgroup2,
        swap_accounting=cgroup2 or memsw.exists(),
        apparmor_profile=_apparmor_profile(root),
        timezone=_timezone(root),
        resolv_conf=_resolv_conf(root),
    )


def _apparmor_profile(root: Path) -> str:
    try:
        loaded = (root / "sys/kernel/security/apparmor/profiles").read_text()
    except OSError:
        return ""
    names = {line.rpartition(" (")[0] for line in loaded.splitlines()}
    return next((name for name in _APPARMOR_PROFILES if name in names), "")


def _timezone(root: Path) -> str:
    """From the link /etc/localtime (localtime(5)), else from Debian's /etc/timezone."""
    try:
        target = os.readlink(root / "etc/localtime")
    except OSError:
        target = ""
    _, found, name = target.partition("zoneinfo/")
    if found:
        return name
    try:
        return (root / "etc/timezone").read_text().strip()
    except OSError:
        return ""


def _resolv_conf(root: Path) -> Path:
    """With systemd-resolved, /etc/resolv.conf names a stub on the node's loopback, which a container cannot reach."""
    plain, resolved = root / "etc/resolv.conf", root / "run/systemd/resolve/resolv.conf"
    try:
        stub = "127.0.0.53" in plain.read_text()
    except OSError:
        return plain
    return resolved if stub and resolved.exists() else plain
