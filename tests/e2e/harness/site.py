"""The place where one agent works: an engine and a containerd namespace in it, folders, a name for the node.

Sites never share any of these, so that the processes of one test know nothing of those of another. Also says what is
there: on the engine, on the disk and in the kernel, found without asking Perdure.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from rig.clients import Ctr
from rig.containerd import Containerd, unmount_below
from rig.images import write_samples
from rig.network import Network
from rig.traces import traces_of, walk


@dataclass(frozen=True, slots=True)
class Site:
    """One node's worth of places. `name` is the node's name and part of everything else."""

    name: str
    engine: Containerd
    directory: Path
    """Everything that Perdure keeps here: short, because there are sockets in it, and on the engine's disk."""
    dual_stack: bool = False
    """Runtimes get IPv6 addresses, too."""

    @property
    def engine_namespace(self) -> str:
        return f"e2e-{self.name}"

    @property
    def state_dir(self) -> Path:
        return self.directory / "state"

    @property
    def run_dir(self) -> Path:
        return self.directory / "run"

    @property
    def archive_dir(self) -> Path:
        return self.directory / "archives"

    @property
    def cgroup_parent(self) -> str:
        return f"{self.engine.cgroup_parent}/{self.name}"

    @property
    def ctr(self) -> Ctr:
        return Ctr(self.engine.address, self.engine_namespace)

    @property
    def network(self) -> Network:
        """What runtimes of this site are attached to: its own bridge and subnet."""
        return Network(self.directory, self.directory / "run", self.name.removeprefix("n"), self.dual_stack)

    @property
    def first_port(self) -> int:
        """Of a hundred ports of the machine that other sites hardly share: all sites have one host, and what leads into a
        runtime of one may otherwise lead into another's. Below those that services of tests and outgoing connections use.
        """
        return 10_000 + int(self.network.identifier, 16) % 100 * 100

    @property
    def last_dynamic_port(self) -> int:
        """What follows is for tests that choose: see `static_port`."""
        return self.first_port + 89

    def static_port(self, number: int) -> int:
        """One of ten, `number` from 0, that no runtime is given by itself."""
        return self.first_port + 90 + number

    def prepare(self, images: Path) -> None:
        """Make the folders, write the network's configuration and import the sample images, which are built in `images`
        once for all sites."""
        self.directory.mkdir(parents=True)
        self.network.write()
        for archive in write_samples(images).values():
            self.engine.import_image(archive, self.engine_namespace)

    def options(self) -> dict[str, str]:
        """What an agent is told, or an agent and controller in one, as variables."""
        return {
            "PERDURE_NODE_NAME": self.name,
            "PERDURE_CONTAINERD_ADDRESS": str(self.engine.address),
            "PERDURE_ENGINE_NAMESPACE": self.engine_namespace,
            "PERDURE_RUNC_ROOT": str(self.engine.runc_root),
            "PERDURE_CGROUP_PARENT": self.cgroup_parent,
            "PERDURE_STATE_DIR": str(self.state_dir),
            "PERDURE_RUN_DIR": str(self.run_dir),
            "PERDURE_ARCHIVE_DIR": str(self.archive_dir),
            "PERDURE_CNI_CONF_DIR": str(self.network.configuration_directory),
            "PERDURE_PORT_RANGE": f"{self.first_port}-{self.last_dynamic_port}",
            "PERDURE_ALLOCATABLE_CPU": "64",
            "PERDURE_ALLOCATABLE_MEMORY": "64Gi",
        }

    def things_of(self, uid: str) -> list[str]:
        """Everything anywhere on this node that bears the uid of a runtime, archives aside; sorted, readable."""
        return traces_of(uid, self.ctr, self.cgroup_parent, (self.run_dir, self.state_dir), self.network)

    def forget_port_rules(self, uid: str) -> None:
        """Take away the rules that lead into a runtime, as somebody does who flushes tables."""
        self.network.forget_rules(uid)

    def archive_files(self, *, namespace: str | None = None) -> list[Path]:
        """Every file in the store, of one Kubernetes namespace where one is named."""
        files = (path for path in walk(self.archive_dir) if path.is_file())
        return sorted(path for path in files if namespace is None or f"/{namespace}/" in str(path))

    def clear(self) -> None:
        """Remove what the tests left here, running containers first."""
        self.ctr.remove_namespace()
        self.network.remove()
        unmount_below(self.directory)
        shutil.rmtree(self.directory)
