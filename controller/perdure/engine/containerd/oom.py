"""Whether the kernel killed something in a container for want of memory: asked of its cgroup while that still exists.

Sources: kernel, admin-guide/cgroup-v1/memory.rst (memory.oom_control) and cgroup-v2.rst (memory.events).
"""

from __future__ import annotations

from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def folder(cgroup: str, *, cgroup2: bool, root: Path = CGROUPS) -> Path:
    """Where a cgroup (`/perdure/<id>`) is; on v1 in the memory hierarchy."""
    return (root if cgroup2 else root / "memory") / cgroup.lstrip("/")


def kills(cgroup: str, *, cgroup2: bool, root: Path = CGROUPS) -> int | None:
    """How many processes of a cgroup (`/perdure/<id>`) were killed; None where that cannot be read. Blocking."""
    file = folder(cgroup, cgroup2=cgroup2, root=root) / ("memory.events" if cgroup2 else "memory.oom_control")
    try:
        text = file.read_text()
    except OSError:
        return None
    counts = dict(line.split(maxsplit=1) for line in text.splitlines() if " " in line)
    found = counts.get("oom_kill", "")
    return int(found) if found.isdigit() else None
