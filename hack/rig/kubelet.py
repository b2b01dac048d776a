"""A node that runs Pods, of a kubelet and a kube-scheduler, on an environment's control plane and engine.

Called by benchmarks, to compare with. A kubelet is made to own its machine. This one does not: its cgroups are below the
environment's, it makes no firewall rules (``makeIPTablesUtilChains``), and what it has no option for is in a mount
namespace of its own, so that neither the kernel's settings nor the folders of another kubelet are touched.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rig import binaries, ports
from rig.environment import Environment
from rig.images import write_pause, write_samples
from rig.probes import answers, self_signed
from rig.processes import Daemon, end, recorded
from rig.progress import run

NODE = "pods"
"""Name of the Node object."""
ENGINE_NAMESPACE = "k8s.io"
"""Of containerd, for all that CRI makes (containerd, pkg/cri/constants)."""
PORTS = ("kubelet", "kubelet-health", "scheduler")
CONFIGURATION = "kubelet.json"
MADE = "made.json"
"""Names the folders outside the environment's that were not there before."""
FIXED_FOLDERS = (Path("/var/lib/kubelet"), Path("/var/log/containers"))
"""Device plugins' sockets and links to logs are kept here whatever the configuration says (pluginapi.DevicePluginPath,
kuberuntime/legacy.go)."""
CNI_RESULTS = Path("/var/lib/cni/results")
"""Where CRI keeps what plugins answered (libcni.CacheDir); nothing tells it to use another folder."""
KERNEL_SETTINGS = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}
"""What a kubelet changes or, with ``protectKernelDefaults``, insists on (cm/container_manager_linux.go,
setupKernelTunables). It is shown these; the kernel keeps its own."""
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class PodNode:
    """One kubelet with its scheduler; ``environment`` was brought up with ``pods``."""

    environment: Environment

    @property
    def directory(self) -> Path:
        """Of the kubelet's own files, Pods' logs and the network's configuration."""
        return self.environment.directory / "pods"

    @property
    def run_directory(self) -> Path:
        """Pid files, logs of the daemons, addresses of Pods."""
        return self.environment.run_directory / "pods"

    @property
    def logs(self) -> Path:
        """What Pods print: ``NAMESPACE_NAME_UID/CONTAINER/RESTARTS.log``, each line behind a time and a stream."""
        return self.directory / "logs"

    @property
    def kubelet(self) -> Daemon:
        """Makes the Pods that are bound to NODE."""
        kubeconfig = self.environment.control_plane.kubeconfig(f"system:node:{NODE}", ("system:masters",))
        # fmt: off
        argv = [
            _program("kubelet"), "--config", str(self.run_directory / CONFIGURATION), "--kubeconfig", str(kubeconfig),
            "--root-dir", str(self.directory / "kubelet"), "--cert-dir", str(self.directory / "certificates"),
            "--hostname-override", NODE, "--node-ip", machine_address(),
        ]
        # fmt: on
        health = f"http://127.0.0.1:{ports.read(self.run_directory)['kubelet-health']}/healthz"
        return Daemon("kubelet", behind_covers(argv, self._covers()), self.run_directory, lambda: answers(health))

    @property
    def scheduler(self) -> Daemon:
        """Binds them."""
        port = ports.read(self.run_directory)["scheduler"]
        kubeconfig = str(self.environment.control_plane.kubeconfig("system:kube-scheduler", ("system:masters",)))
        # fmt: off
        argv = [
            _program("kube-scheduler"), "--kubeconfig", kubeconfig,
            "--authentication-kubeconfig", kubeconfig, "--authorization-kubeconfig", kubeconfig,
            "--bind-address", "127.0.0.1", "--secure-port", str(port),
            "--cert-dir", str(self.run_directory / "scheduler"), "--leader-elect=false",
        ]
        # fmt: on
        address = f"https://127.0.0.1:{port}/healthz"
        return Daemon("kube-scheduler", argv, self.run_directory, lambda: answers(address, self_signed()))

    def version(self) -> str:
        """Like ``v1.36.3``."""
        return run([_program("kubelet"), "--version"], timeout=20).split()[1]

    def start(self) -> None:
        """Start both and wait until they serve; the Node is Ready some seconds later. Once in an environment's life.

        Raises DaemonError or CommandError.
        """
        self.logs.mkdir(parents=True)
        ports.remembered(self.run_directory, PORTS, frozenset())
        self.environment.pod_network.write()
        engine = self.environment.engine
        for archive in (write_pause(self.directory), *write_samples(self.directory).values()):
            engine.import_image(archive, ENGINE_NAMESPACE)
        for hierarchy in _hierarchies():
            (hierarchy / engine.cgroup_parent.strip("/")).mkdir(exist_ok=True)
        self._lay_covers()
        configuration = json.dumps(configuration_of(self, ports.read(self.run_directory)), indent=2)
        (self.run_directory / CONFIGURATION).write_text(f"{configuration}\n")
        daemons = (self.scheduler, self.kubelet)
        for daemon in daemons:
            daemon.start()
        for daemon in daemons:
            daemon.wait_ready()

    def stop(self) -> None:
        """End both and take away what they left outside the environment's folders; Pods that were not deleted end with
        the environment. A no-op where nothing was started."""
        for name in ("kubelet", "kube-scheduler"):
            process = recorded(self.run_directory, name)
            if process is not None:
                end(process, name)
        forget_results(CNI_RESULTS, self.environment.pod_network.name)
        for folder in self._made_folders():
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()

    def _covers(self) -> dict[Path, Path]:
        """What a kubelet uses without being told, and what it finds there instead."""
        folders = {folder: self.directory / f"instead-of-{folder.name}" for folder in FIXED_FOLDERS}
        settings = {Path("/proc/sys", name): self.directory / name.replace("/", ".") for name in KERNEL_SETTINGS}
        return folders | settings

    def _lay_covers(self) -> None:
        """Make all covers, and the folders that they are to lie on; remember which of these were not there before."""
        absent = [folder for folder in (*FIXED_FOLDERS, CNI_RESULTS, CNI_RESULTS.parent) if not folder.exists()]
        (self.run_directory / MADE).write_text(json.dumps([str(folder) for folder in absent]))
        covers = self._covers()
        for folder in FIXED_FOLDERS:
            folder.mkdir(parents=True, exist_ok=True)
            covers[folder].mkdir()
        for name, value in KERNEL_SETTINGS.items():
            covers[Path("/proc/sys", name)].write_text(f"{value}\n")

    def _made_folders(self) -> list[Path]:
        record = self.run_directory / MADE
        return [Path(text) for text in json.loads(record.read_text())] if record.exists() else []


def configuration_of(node: PodNode, numbers: Mapping[str, int]) -> dict[str, object]:
    """A KubeletConfiguration (kubelet.config.k8s.io/v1beta1): the defaults, less what would leave the environment, and
    without evictions. ``numbers``: by PORTS."""
    environment = node.environment
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{environment.engine.address}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": environment.cgroup_parent,
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,  # any below zero takes CAP_SYS_RESOURCE
        "protectKernelDefaults": True,
        "makeIPTablesUtilChains": False,
        "podLogsDir": str(node.logs),
        "volumePluginDir": str(node.directory / "volume-plugins"),
        "address": "127.0.0.1",
        "port": numbers["kubelet"],
        "readOnlyPort": 0,
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": numbers["kubelet-health"],
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": str(environment.control_plane.authority.certificate)},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "clusterDomain": "cluster.local",
        "clusterDNS": ["10.0.0.10"],  # nobody answers; without one every Pod costs an Event
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,  # never
    }


def behind_covers(argv: Sequence[str], covers: Mapping[Path, Path]) -> list[str]:
    """A command line that runs ``argv`` in a mount namespace of its own, where each path of ``covers`` shows what it is
    mapped to. What others mount later is seen there, too; not the other way round."""
    mounts = [shlex.join(["mount", "--bind", str(shown), str(path)]) for path, shown in covers.items()]
    script = "\n".join([*mounts, f"exec {shlex.join(argv)}"])
    return ["unshare", "--mount", "--propagation", "slave", "sh", "-e", "-c", script]


def machine_address() -> str:
    """An IPv4 address of this machine that is not loopback's: a Node has to have one. Raises RuntimeError."""
    for link in json.loads(run(["ip", "-4", "-j", "address", "show", "scope", "global"], timeout=20)):
        for found in link.get("addr_info", []):
            return str(found["local"])
    raise RuntimeError("a kubelet needs an IPv4 address of the machine besides loopback's; this one has none")


def forget_results(folder: Path, network: str) -> None:
    """Remove the plugins' answers about the Pods of one network, with what is kept of their loopback (``cni-loopback-ID-lo``):
    left by Pods that were not deleted."""
    for result in folder.glob(f"{network}-*"):
        pod = result.name.removeprefix(f"{network}-").rpartition("-")[0]
        (folder / f"cni-loopback-{pod}-lo").unlink(missing_ok=True)
        result.unlink(missing_ok=True)


def _hierarchies() -> list[Path]:
    """The one of cgroup version 2, or all of version 1."""
    if (CGROUPS / "cgroup.procs").exists():
        return [CGROUPS]
    return [folder for folder in CGROUPS.iterdir() if (folder / "cgroup.procs").exists() and not folder.is_symlink()]


def _program(name: str) -> str:
    (program,) = (program for program in binaries.POD_PROGRAMS if program.name == name)
    return str(binaries.find(program) or program.cached)
