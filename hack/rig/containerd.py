"""A containerd of our own beside whatever else runs on the machine.

Root, state, socket, runc root and cgroup parent are its own: runc's state and cgroups are otherwise shared by all
containerds of a host. Called by ``rig.environment``, and by tests that need a second node or want to kill an engine.
"""

import errno
import os
import re
import shutil
import signal
import socket
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from rig.cri import Cri
from rig.paths import system_path
from rig.processes import Daemon, ProcessIdentity, command_lines, end
from rig.progress import CommandError, run

SHIM = "containerd-shim-runc-v2"
SHIM_SOCKETS = Path("/run/containerd/s")
"""Every containerd of a host puts its shims' sockets here (containerd 1.x and 2.x, pkg/shim SocketAddress)."""

CRI_PLUGINS = (
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.podsandbox.controller.v1.podsandbox",
)
"""What serves a kubelet; enabled only for an engine that has one."""
DISABLED_PLUGINS = (
    "io.containerd.nri.v1.nri",
    "io.containerd.internal.v1.opt",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
)
"""Those that need a special disk, and those that reach for folders which all engines of a machine share."""


def config_version(version_output: str) -> int:
    """The configuration format for a ``containerd --version`` line: 3 from containerd 2.0 on, 2 before.

    Raises ValueError where the line holds no version.
    """
    found = re.search(r"\bv?(\d+)\.\d+\.\d+", version_output)
    if found is None:
        raise ValueError(f"cannot read a containerd version from {version_output!r}")
    return 3 if int(found[1]) >= 2 else 2


def render_config(*, version: int, root: Path, state: Path, address: Path, serves_kubelet: bool = False) -> str:
    """The configuration file of one engine (containerd-config.toml(5)); the tables of ``rig.cri`` may follow."""
    disabled = ", ".join(f'"{plugin}"' for plugin in (*(() if serves_kubelet else CRI_PLUGINS), *DISABLED_PLUGINS))
    return (
        f"version = {version}\n"
        f'root = "{root}"\n'
        f'state = "{state}"\n'
        f"disabled_plugins = [{disabled}]\n"
        "[grpc]\n"
        f'  address = "{address}"\n'
        "[ttrpc]\n"
        f'  address = "{address}.ttrpc"\n'
    )


@dataclass(frozen=True, slots=True)
class Containerd:
    """One engine. ``data_directory`` holds images and snapshots, ``run_directory`` (short!) sockets, state and log.

    ``cgroup_parent`` (like ``/perdure-env-1a2b3c4d``) and ``runc_root`` are what containers of this engine must name.
    ``program_directory`` is where another containerd than the machine's own is taken from; ``cri`` is for engines that
    serve a kubelet, too.
    """

    data_directory: Path
    run_directory: Path
    cgroup_parent: str
    program_directory: Path | None = None
    cri: Cri | None = None

    @property
    def address(self) -> Path:
        """The gRPC socket."""
        return self.run_directory / "containerd.sock"

    @property
    def runc_root(self) -> Path:
        """runc's state, given to containers as the runtime option ``root``."""
        return self.run_directory / "runc"

    @property
    def root(self) -> Path:
        """Content and snapshots."""
        return self.data_directory / "root"

    @property
    def state(self) -> Path:
        """Bundles and mounts of running containers."""
        return self.run_directory / "state"

    @property
    def daemon(self) -> Daemon:
        """The engine's process."""
        config = self.data_directory / "config.toml"
        return Daemon(
            "containerd",
            [str(self.program("containerd")), "--config", str(config)],
            self.run_directory,
            self.answers,
            env={"PATH": self._path()},
        )

    def program(self, name: str) -> Path:
        """``containerd``, ``ctr`` or the shim of this engine. Raises FileNotFoundError."""
        found = shutil.which(name, path=self._path())
        if found is None:
            raise FileNotFoundError(f"{name} is not on PATH; install Debian's containerd package")
        return Path(found)

    def start(self) -> None:
        """Start unless it runs; returns once it answers. Raises DaemonError or CommandError."""
        for directory in (self.data_directory, self.run_directory):
            directory.mkdir(parents=True, exist_ok=True, mode=0o711)
        version = config_version(run([self.program("containerd"), "--version"], timeout=20))
        paths = {"root": self.root, "state": self.state, "address": self.address}
        config = render_config(version=version, **paths, serves_kubelet=self.cri is not None)
        if self.cri is not None:
            config += self.cri.render(version, self.runc_root)
        (self.data_directory / "config.toml").write_text(config)
        self.daemon.start()
        self.daemon.wait_ready()

    def answers(self) -> bool:
        """True if the engine's API is served."""
        if not self.address.is_socket():
            return False
        try:
            self.ctr("version", timeout=5)
        except CommandError:
            return False
        return True

    def ctr(self, *arguments: str | Path, timeout: float = 60) -> str:
        """Run ``ctr`` against this engine and return its stdout. Raises CommandError."""
        return run([self.program("ctr"), "--address", self.address, *arguments], timeout=timeout)

    def import_image(self, archive: Path, namespace: str) -> None:
        """Make the images of an OCI archive known, and unpacked, in one containerd namespace."""
        self.ctr("--namespace", namespace, "images", "import", "--snapshotter", "overlayfs", archive)

    def images(self, namespace: str) -> frozenset[str]:
        """Names of the images of one containerd namespace."""
        return frozenset(self.ctr("--namespace", namespace, "images", "ls", "-q").split())

    def stop(self) -> None:
        """End the engine and everything that it started: shims, containers, their mounts and cgroups. Data stay.

        What is left is what a reboot leaves: snapshots, content and records of containers that do not run.
        """
        self.daemon.stop()
        for shim in self.shims():
            containers = _children(shim.pid)
            end(shim, f"{SHIM} {shim.pid}", ask_with=signal.SIGKILL)
            for container in containers:
                end(container, f"container process {container.pid}", ask_with=signal.SIGKILL)
        for cgroup in cgroups_named(self.cgroup_parent):
            end_cgroup(cgroup)
        for directory in (self.state, self.root, self.runc_root):
            unmount_below(directory)
        for directory in (self.state, self.runc_root):
            shutil.rmtree(directory, ignore_errors=True)
        for path in (self.address, Path(f"{self.address}.ttrpc")):
            path.unlink(missing_ok=True)
        remove_dead_shim_sockets()

    def shims(self) -> list[ProcessIdentity]:
        """The shims that serve this engine."""
        return [
            line.process
            for line in command_lines()
            if Path(line.argv[0]).name == SHIM and ("-address", str(self.address)) in pairwise(line.argv)
        ]

    def _path(self) -> str:
        path = system_path(os.environ.get("PATH", "/usr/bin:/bin"))
        return f"{self.program_directory}{os.pathsep}{path}" if self.program_directory else path


def unmount_below(directory: Path) -> None:
    """Detach every mount at or below ``directory``, the deepest first. Raises CommandError."""
    for target in reversed(mounts_below(directory)):
        run(["umount", "--lazy", target], timeout=20)


def mounts_below(directory: Path) -> list[str]:
    """Mount points at or below ``directory`` in the order in which they were mounted (proc_pid_mountinfo(5))."""
    prefix = str(directory)
    targets = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        target = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), line.split()[4])
        if target == prefix or target.startswith(f"{prefix}/"):
            targets.append(target)
    return targets


def cgroups_named(parent: str) -> list[Path]:
    """Existing cgroup folders for the cgroup path ``parent`` in every hierarchy, version 1 and 2."""
    top = Path("/sys/fs/cgroup")
    relative = parent.strip("/")
    return [found for base in (top, *sorted(top.iterdir())) if (found := base / relative).is_dir()]


def remove_dead_shim_sockets() -> None:
    """Remove sockets of shims that were killed: nobody listens on them, so nobody can use them again."""
    for path in SHIM_SOCKETS.glob("*"):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(2)
            if probe.connect_ex(str(path)) == errno.ECONNREFUSED:
                path.unlink(missing_ok=True)


def end_cgroup(directory: Path) -> None:
    """Kill what runs in a cgroup and its children, then remove them."""
    folders = sorted((path for path in directory.rglob("*") if path.is_dir()), reverse=True)
    for folder in (*folders, directory):
        for pid in (folder / "cgroup.procs").read_text().split():
            identity = ProcessIdentity.of(int(pid))
            if identity is not None:
                end(identity, f"process {pid} of cgroup {folder}", ask_with=signal.SIGKILL)
        _remove_cgroup(folder)


def _remove_cgroup(folder: Path) -> None:
    """rmdir a cgroup; EBUSY passes once the kernel has let go of its last process. Raises OSError after 10 s."""
    deadline = time.monotonic() + 10
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _children(pid: int) -> list[ProcessIdentity]:
    """Direct children of a process, all threads counted (proc_pid_task(5))."""
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in file.read_text().split():
            identity = ProcessIdentity.of(int(child))
            if identity is not None:
                found.append(identity)
    return found
