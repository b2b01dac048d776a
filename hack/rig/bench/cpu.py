"""CPU time by part of the system, children included, from a cgroup per part.

A process's own counters lose what its children used that somebody else reaps, as containerd's shims are; the kernel's
cgroup counters lose nothing (cgroup-v1/cpuacct.rst, cgroup-v2.rst ``cpu.stat``). Called by the benchmarks' stage.
"""

from collections.abc import Mapping
from pathlib import Path

from rig.containerd import cgroups_named, end_cgroup
from rig.processes import ProcessIdentity

TOP = Path("/sys/fs/cgroup")
VERSION_1_CONTROLLERS = ("cpuacct", "cpu,cpuacct")


class CpuAccounts:
    """One account per part; ``containers`` is the cgroup parent of the containers, counted as the part ``engine``."""

    def __init__(self, parent: str, containers: str) -> None:
        self._parent = parent
        self._hierarchy = next((TOP / name for name in VERSION_1_CONTROLLERS if (TOP / name).is_dir()), TOP)
        self._containers = self._hierarchy / containers.strip("/")
        self._parts: dict[str, Path] = {}

    def admit(self, part: str, process: ProcessIdentity) -> None:
        """From now on what this process, its descendants of now and its children of later use is counted for ``part``."""
        folder = self._parts.setdefault(part, self._hierarchy / self._parent.strip("/") / part)
        folder.mkdir(parents=True, exist_ok=True)
        for pid in (process.pid, *_descendants(process.pid)):
            try:
                (folder / "cgroup.procs").write_text(str(pid))
            except ProcessLookupError:
                continue  # it ended while we looked

    def seconds(self) -> dict[str, float]:
        """CPU seconds of each part since it was admitted."""
        used = {part: _usage(folder) for part, folder in self._parts.items()}
        if self._containers.is_dir():
            used["engine"] = used.get("engine", 0.0) + _usage(self._containers)
        return used

    def close(self) -> None:
        """Remove the accounts; what still runs in them is killed. Raises DaemonError or OSError."""
        for folder in cgroups_named(self._parent):
            end_cgroup(folder)


def spent(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each part between two readings."""
    return {part: after[part] - before.get(part, 0.0) for part in after}


def _usage(folder: Path) -> float:
    version_1 = folder / "cpuacct.usage"
    if version_1.exists():
        return int(version_1.read_text()) / 1e9
    fields = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
    return int(fields["usage_usec"]) / 1e6


def _descendants(pid: int) -> list[int]:
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in file.read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found
