"""One whole environment: a control plane, an engine, a database, sample images, and Perdure's CRDs.

Called by ``hack/env`` (through ``rig.env``), ``hack/test``, the demo and the benchmarks. What survives ``down
--keep-data`` is below the environment's folder; sockets, pids, logs and mounts are below its short runtime folder.
"""

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rig import binaries, controlplane, images, packages, ports
from rig.containerd import Containerd, mounts_below, unmount_below
from rig.controlplane import ControlPlane
from rig.cri import Cri
from rig.exports import render_wrapper
from rig.network import Network, forget_shared_chains, plugin_directory
from rig.paths import CHECKOUT, DIRECTORY_FILE, OWNER_FILE, RUN_ROOT, environment_id, run_directory
from rig.postgres import Postgres, programs
from rig.probes import answers
from rig.processes import CommandLine, Daemon, command_lines, end, recorded
from rig.progress import run, say, ticking

ENGINE_NAMESPACE = "perdure"
PORT_USERS = {**controlplane.PORT_USERS, "operator": "perdure-standalone"}
"""Which daemon listens on the port of which name."""


class RefusedError(RuntimeError):
    """The environment cannot be set up or torn down as asked; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Environment:
    """One environment, told from others by its folder.

    ``durable`` lets etcd and PostgreSQL fsync, as benchmarks want. ``engine_programs`` is a folder with another
    containerd than the machine's. ``pods`` lets the engine serve a kubelet besides.
    """

    directory: Path
    durable: bool = False
    engine_programs: Path | None = None
    pods: bool = False

    @property
    def run_directory(self) -> Path:
        """Sockets, pid files, logs and mounts."""
        return run_directory(self.directory)

    @property
    def state_directory(self) -> Path:
        """What Perdure itself keeps: journal, archives."""
        return self.directory / "state"

    @property
    def cgroup_parent(self) -> str:
        """Cgroup path below which containers of this environment run."""
        return f"/perdure-env-{environment_id(self.directory)}"

    @property
    def control_plane(self) -> ControlPlane:
        """etcd, API server, controller manager. The ports are known once ``up`` ran."""
        return ControlPlane(
            data_directory=self.directory / "control-plane",
            run_directory=self.run_directory,
            ports=ports.read(self.run_directory),
            binaries={program.name: binaries.find(program) or program.cached for program in binaries.PROGRAMS},
            durable=self.durable,
        )

    @property
    def engine(self) -> Containerd:
        """containerd."""
        cri = None
        if self.pods:
            cri = Cri(images.PAUSE, self.pod_network.configuration_directory, plugin_directory())
        data = self.directory / "containerd"
        return Containerd(data, self.run_directory, self.cgroup_parent, self.engine_programs, cri)

    @property
    def database(self) -> Postgres:
        """PostgreSQL."""
        return Postgres(
            self.directory / "postgres", self.run_directory / "pg", self.run_directory, durable=self.durable
        )

    @property
    def network(self) -> Network:
        """What runtimes are attached to."""
        return Network(self.directory, self.run_directory, environment_id(self.directory))

    @property
    def pod_network(self) -> Network:
        """What a kubelet's Pods are attached to: none that Perdure looks after."""
        folder = self.directory / "pods"
        return Network(folder, self.run_directory / "pods", environment_id(folder))

    @property
    def operator(self) -> Daemon:
        """``perdure standalone`` on this environment."""
        address = f"127.0.0.1:{ports.read(self.run_directory).get('operator', 0)}"
        return Daemon(
            "perdure-standalone",
            [str(self.directory / "bin" / "perdure"), "standalone", "--http-address", address],
            self.run_directory,
            lambda: answers(f"http://{address}/readyz"),
            env={**self.variables(), "PERDURE_HTTP_ADDRESS": address, "PATH": self.search_path()},
        )

    def variables(self) -> dict[str, str]:
        """What ``hack/env up`` exports, PATH aside."""
        return {
            "KUBECONFIG": str(self.control_plane.admin_kubeconfig),
            "PERDURE_CONTAINERD_ADDRESS": str(self.engine.address),
            "PERDURE_DATABASE_URL": self.database.url,
            "PERDURE_STATE_DIR": str(self.state_directory),
            "PERDURE_RUN_DIR": str(self.run_directory / "perdure"),
            "PERDURE_RUNC_ROOT": str(self.engine.runc_root),
            "PERDURE_CGROUP_PARENT": self.cgroup_parent,
            "PERDURE_CNI_CONF_DIR": str(self.network.configuration_directory),
        }

    def search_path(self) -> str:
        """PATH with this environment's commands first."""
        return f"{self.directory / 'bin'}{os.pathsep}{os.environ.get('PATH', '/usr/sbin:/usr/bin:/sbin:/bin')}"

    def up(self, *, operator: bool = False) -> None:
        """Bring everything up that is not; idempotent. Raises RuntimeError's children with what to do."""
        if os.geteuid() != 0:
            raise RefusedError("an environment needs root: containerd makes mounts, namespaces and cgroups")
        packages.ensure()
        binaries.ensure()
        self._claim_directory()
        with self._lock():
            running = frozenset(port for port, user in PORT_USERS.items() if recorded(self.run_directory, user))
            ports.remembered(self.run_directory, PORT_USERS, running)
            starts = (self.control_plane.start, self._start_engine, self.database.start)
            with ticking("starting etcd, the API server, containerd and PostgreSQL"), ThreadPoolExecutor() as pool:
                for future in [pool.submit(start) for start in starts]:
                    future.result()
            self._write_wrappers()
            self.network.write()
            self._apply_definitions()
            if operator:
                with ticking("starting perdure standalone"):
                    self.operator.start()
                    self.operator.wait_ready()

    def down(self, *, keep_data: bool = False) -> None:
        """End everything of this environment and remove what it left on the machine.

        ``keep_data`` keeps the cluster's, the engine's and the database's content, and Perdure's own state, for a
        later ``up``. Raises RefusedError if the folder is not an environment.
        """
        if not self.run_directory.exists() and not _holds_something(self.directory):
            return
        if _holds_something(self.directory) and not (self.directory / OWNER_FILE).exists():
            raise RefusedError(f"{self.directory} was not made by hack/env up; nothing was touched")
        self.run_directory.mkdir(parents=True, exist_ok=True)
        with self._lock():
            if ports.read(self.run_directory):
                self.operator.stop()
            self.engine.stop()
            if ports.read(self.run_directory):
                self.control_plane.stop()
            self.database.stop()
            self._end_strays()
            self.network.remove()
            if self.pod_network.configuration_directory.exists():
                self.pod_network.remove()
            for directory in (self.run_directory, self.directory):
                unmount_below(directory)
                left = mounts_below(directory)
                if left:
                    raise RefusedError(f"{left[0]} is still mounted; nothing below {directory} was removed")
            for entry in self.run_directory.iterdir():
                if not (keep_data and entry.name == ports.FILE):
                    _remove(entry)
            if not keep_data:
                self.run_directory.rmdir()
                if self.directory.exists():
                    shutil.rmtree(self.directory)
        if RUN_ROOT.exists() and not any(RUN_ROOT.iterdir()):
            RUN_ROOT.rmdir()
            forget_shared_chains()

    def parts(self) -> list[tuple[Daemon, str]]:
        """Every daemon with the address that it serves; none where the environment is down."""
        known = ports.read(self.run_directory)
        if not known or not self.directory.exists():
            return []
        plane = self.control_plane
        return [
            (plane.etcd, f"http://127.0.0.1:{known['etcd']}"),
            (plane.apiserver, plane.url),
            (plane.controller_manager, f"https://127.0.0.1:{known['controller-manager']}"),
            (self.engine.daemon, str(self.engine.address)),
            (self.database.daemon, self.database.url),
            (self.operator, f"http://127.0.0.1:{known['operator']}"),
        ]

    def _claim_directory(self) -> None:
        owned = self.directory / OWNER_FILE
        if _holds_something(self.directory) and not owned.exists():
            raise RefusedError(f"{self.directory} holds other things; name an empty or new folder with --dir")
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o755)
        owned.write_text("Made by Perdure's hack/env up; removed by hack/env down.\n")
        self.run_directory.mkdir(parents=True, exist_ok=True, mode=0o711)
        (self.run_directory / DIRECTORY_FILE).write_text(f"{self.directory}\n")

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One ``up`` or ``down`` at a time per environment (flock(2) on the folder itself)."""
        descriptor = os.open(self.run_directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _apply_definitions(self) -> None:
        files = sorted((CHECKOUT / "crds").glob("*.yaml"))
        if files:
            kubectl = [_beside_python("kubectl"), f"--kubeconfig={self.control_plane.admin_kubeconfig}"]
            named = [f"--filename={file}" for file in files]
            run([*kubectl, "apply", "--server-side", "--force-conflicts", *named], timeout=180)
            run([*kubectl, "wait", "--for=condition=Established", "--timeout=180s", *named], timeout=190)

    def _start_engine(self) -> None:
        self.engine.start()
        self.state_directory.mkdir(exist_ok=True, mode=0o700)
        wanted = images.write_samples(self.directory / "images")
        for image in wanted.keys() - self.engine.images(ENGINE_NAMESPACE):
            self.engine.import_image(wanted[image], ENGINE_NAMESPACE)

    def _write_wrappers(self) -> None:
        directory = self.directory / "bin"
        directory.mkdir(exist_ok=True)
        perdure = render_wrapper(
            [sys.executable, "-m", "perdure.cli.main"], variables={"PYTHONPATH": str(CHECKOUT / "controller")}
        )
        wrappers = {
            "perdure": perdure,
            "kubectl-perdure": perdure,
            "kubectl": render_wrapper([_beside_python("kubectl")]),
            "ctr": render_wrapper([str(self.engine.program("ctr")), "--address", str(self.engine.address)]),
            "psql": render_wrapper([str(programs() / "psql")]),
        }
        for name, text in wrappers.items():
            temporary = directory / f".{name}.new"
            temporary.write_text(text)
            temporary.chmod(0o755)
            temporary.rename(directory / name)

    def _end_strays(self) -> None:
        """End what was started by hand or by Perdure on this environment: agents, archive pipelines, databases."""
        for line in command_lines():
            if self._is_at_work_here(line):
                say(f"    ending {line.argv[0]} (pid {line.process.pid}), which works on {self.directory}")
                end(line.process, line.argv[0])

    def _is_at_work_here(self, line: CommandLine) -> bool:
        folders = (f"{self.state_directory}/", f"{self.run_directory}/", f"{self.directory / 'containerd'}/")
        if any(folder in argument for argument in line.argv for folder in folders):
            return True
        is_ours = "perdure.cli.main" in line.argv
        return is_ours and line.environment().get("PERDURE_STATE_DIR") == str(self.state_directory)


def _beside_python(name: str) -> str:
    """A command that a Python package brought, from the running interpreter's own folder."""
    return str(Path(sys.executable).parent / name)


def _holds_something(directory: Path) -> bool:
    return directory.exists() and any(directory.iterdir())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
