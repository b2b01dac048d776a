"""What there is of one runtime on a node, found without asking Perdure: by its uid on the engine, on disk, in the kernel.

Called by the demo and the end-to-end tests, for which "nothing is left" must not be Perdure's own word.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from rig.clients import Ctr
from rig.containerd import cgroups_named, mounts_below
from rig.network import Network


def traces_of(uid: str, ctr: Ctr, cgroup_parent: str, folders: Iterable[Path], network: Network) -> list[str]:
    """Sorted, readable lines, one for each task, container, snapshot, lease, cgroup, mount, file, address and
    port rule that bears ``uid``.

    ``folders`` are Perdure's own: its state and what it keeps until a reboot. Archives are elsewhere.
    """
    below = list(folders)
    found = {
        "task": ctr.names("tasks", "ls"),
        "container": ctr.names("containers", "ls"),
        "snapshot": ctr.names("snapshots", "--snapshotter", "overlayfs", "ls"),
        "lease": ctr.names("leases", "ls"),
        "cgroup": [str(path) for parent in cgroups_named(cgroup_parent) for path in parent.iterdir() if path.is_dir()],
        "mount": [target for folder in below for target in mounts_below(folder)],
        "file": [str(path) for folder in below for path in walk(folder)],
    }
    named = [f"{kind} {name}" for kind, names in found.items() for name in names if uid in name]
    return sorted([*named, *(f"network {thing}" for thing in network.things_of(uid))])


def walk(folder: Path) -> Iterator[Path]:
    """Every path below ``folder``; things may vanish meanwhile, and no folder is nothing."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(parent, name)
