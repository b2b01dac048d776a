"""What a test run left on the machine: mounts, network namespaces, links, firewall rules, cgroups, processes, files.

Compares the machine before and after. Things of other environments that are up at the same time are told apart by
their folders and ids and left out. Called by ``hack/test`` and by the rig's own tests.
"""

import errno
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from rig.containerd import SHIM_SOCKETS
from rig.kubelet import CNI_RESULTS, FIXED_FOLDERS
from rig.paths import DIRECTORY_FILE, RUN_ROOT, environment_id
from rig.processes import command_lines
from rig.progress import run

TEMPORARY_FOLDERS = (Path("/tmp"), Path("/var/tmp"), Path("/run"), Path("/dev/shm"), RUN_ROOT)
SETTLE_SECONDS = 15.0
SYSTEMD_UNIT = re.compile(r"\.(slice|scope|service|mount|swap|socket)$")
EMPTY_TABLE = re.compile(r"\*|COMMIT$|:[A-Z]+ ACCEPT")
"""What iptables-save shows of a table that somebody has looked into: built-in chains that let everything pass."""
COUNTERS = re.compile(r" ?\[[0-9]+:[0-9]+\]")
RUN_VARIABLE = "PERDURE_TEST_RUN"
"""Set for everything that a test run starts, so that its processes are known by their environment."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Everything on the machine, by kind, that a run could leave behind; each set holds readable names."""

    mounts: frozenset[str]
    network_namespaces: frozenset[str]
    links: frozenset[str]
    firewall_rules: frozenset[str]
    cgroups: frozenset[str]
    shim_sockets: frozenset[str]
    files: frozenset[str]
    processes: frozenset[str]

    @classmethod
    def take(cls, *, run_token: str = "", folders: Iterable[Path] = ()) -> "Footprint":
        """Look at the machine now.

        Of processes only those count that were started with ``run_token`` in RUN_VARIABLE or name one of ``folders``.
        """
        return cls(
            mounts=frozenset(_mounts()),
            network_namespaces=frozenset(str(path) for path in Path("/run/netns").glob("*")),
            links=frozenset(path.name for path in Path("/sys/class/net").iterdir() if path.is_symlink()),
            firewall_rules=frozenset(_firewall_rules()),
            cgroups=frozenset(_cgroups()),
            shim_sockets=frozenset(_dead_shim_sockets()),
            files=frozenset(_files()),
            processes=frozenset(_processes(run_token, [str(folder) for folder in folders])),
        )


@dataclass(frozen=True, slots=True)
class OtherEnvironment:
    """Another environment on this machine, whose things are none of ours."""

    directory: str
    run_directory: str
    identifier: str

    def owns(self, name: str) -> bool:
        """True if ``name`` (a path, rule or link) is one of its things."""
        return self.directory in name or self.run_directory in name or self.identifier in name


def other_environments(own: Path) -> list[OtherEnvironment]:
    """All environments that are up, except the one kept in ``own``."""
    found = []
    for run_directory in RUN_ROOT.glob("*"):
        named = run_directory / DIRECTORY_FILE
        if run_directory.name != environment_id(own) and named.exists():
            directory = named.read_text().strip()
            found.append(OtherEnvironment(directory, str(run_directory), run_directory.name))
    return found


def leaked(before: Footprint, after: Footprint, others: Iterable[OtherEnvironment] = ()) -> list[str]:
    """Lines that name what is there after but was not there before, and belongs to no other environment."""
    neighbours = list(others)
    lines = []
    for kind in fields(Footprint):
        new = getattr(after, kind.name) - getattr(before, kind.name)
        lines += [
            f"{kind.name.replace('_', ' ')}: {name}"
            for name in sorted(new)
            if not any(other.owns(name) for other in neighbours)
        ]
    return lines


def settled_leaks(
    before: Footprint, *, own: Path, run_token: str = "", folders: Iterable[Path] = (), concerning: Iterable[str] = ()
) -> list[str]:
    """``leaked`` against the machine as it is once nothing new vanishes any more, at most 15 s from now.

    ``concerning`` limits it to lines that contain one of these texts: a test among others can only speak for itself.
    """
    wanted, texts = list(folders), list(concerning)
    neighbours: dict[str, OtherEnvironment] = {}
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        neighbours |= {other.identifier: other for other in other_environments(own)}
        lines = leaked(before, Footprint.take(run_token=run_token, folders=wanted), neighbours.values())
        if texts:
            lines = [line for line in lines if any(text in line for text in texts)]
        if not lines or time.monotonic() > deadline:
            return lines
        time.sleep(0.5)


def _mounts() -> list[str]:
    """All but the folder of named network namespaces itself, which ip-netns(8) mounts once and leaves."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [target for line in lines if (target := line.split()[4]) != "/run/netns"]


def _firewall_rules() -> list[str]:
    """Rules and chains of both address families, without counters (iptables-save(8))."""
    rules = []
    for command in ("iptables-save", "ip6tables-save"):
        program = shutil.which(command, path="/usr/sbin:/sbin:/usr/bin")
        if program is not None and os.geteuid() == 0:
            for line in run([program], timeout=30).splitlines():
                if not (line.startswith("#") or EMPTY_TABLE.match(line)):
                    rules.append(f"{command}: {COUNTERS.sub('', line)}")
    nft = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin")
    if nft is not None and os.geteuid() == 0:
        rules += [f"nft: {line}" for line in run([nft, "list", "tables"], timeout=30).splitlines() if "perdure" in line]
    return rules


def _cgroups() -> list[str]:
    """Top-level cgroups of every hierarchy that are not units of the machine's own systemd."""
    top = Path("/sys/fs/cgroup")
    hierarchies = [top, *(path for path in top.iterdir() if path.is_dir() and not path.is_symlink())]
    return [
        str(path)
        for hierarchy in hierarchies
        for path in hierarchy.iterdir()
        if path.is_dir() and not SYSTEMD_UNIT.search(path.name)
    ]


def _dead_shim_sockets() -> list[str]:
    dead = []
    for path in SHIM_SOCKETS.glob("*"):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(2)
            if probe.connect_ex(str(path)) == errno.ECONNREFUSED:
                dead.append(str(path))
    return dead


def _files() -> list[str]:
    """Entries of the folders for temporary things that bear our name, and folders that only a kubelet makes."""
    named = [
        str(path)
        for folder in (*TEMPORARY_FOLDERS, CNI_RESULTS)
        if folder.is_dir()
        for path in folder.iterdir()
        if "perdure" in path.name or folder == RUN_ROOT
    ]
    return named + [str(folder) for folder in (*FIXED_FOLDERS, CNI_RESULTS) if folder.exists()]


def _processes(run_token: str, folders: list[str]) -> list[str]:
    found = []
    for line in command_lines():
        if line.process.pid == os.getpid():
            continue
        is_of_run = bool(run_token) and line.environment().get(RUN_VARIABLE) == run_token
        if is_of_run or any(folder in argument for folder in folders for argument in line.argv):
            found.append(f"{line.process.pid} {' '.join(line.argv)[:200]}")
    return found
