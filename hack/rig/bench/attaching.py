"""Who attaches runtimes to the environment's network: Perdure's own provider as its processes compose it, and ``ctr`` with
the same plugins, called one after another. Called by the benchmarks of the network.
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from perdure.api.names import InstallationId, NodeName, Uid
from perdure.cli.networks import Networks, open_networks
from perdure.cli.settings import NodeSettings
from perdure.network import netns
from perdure.network.cni import configuration
from perdure.network.cni.attachment import Attachment, Capabilities, PortMapping
from perdure.network.cni.client import CniClient
from perdure.network.cni.configuration import Network
from perdure.network.cni_sandbox import IFNAME
from perdure.network.firewall import Firewall
from perdure.network.isolation import rules_of
from perdure.network.rules import owner_of
from rig.bench.cluster import BenchmarkError
from rig.bench.peers import ENGINE_NAMESPACE, Ctr
from rig.environment import Environment
from rig.network import PLUGIN_DIRECTORIES

CONTAINER_PORT = 8080
PLUGIN_SECONDS = 30.0


def bridge_alone(environment: Environment) -> Path:
    """A folder with the environment's configuration, less all plugins but the bridge: its firewall, which is Perdure's own,
    has the one rule for masquerade."""
    (source,) = environment.network.configuration_directory.glob("*.conflist")
    document = json.loads(source.read_text())
    folder = environment.directory / "bridge.d"
    folder.mkdir(exist_ok=True)
    (folder / source.name).write_text(json.dumps({**document, "plugins": document["plugins"][:1]}))
    return folder


@dataclass(frozen=True, slots=True)
class Attaching:
    """The provider and the network that it attaches to. ``damaged``: whom its upkeep found to need repair."""

    networks: Networks
    network: Network
    damaged: list[Uid]


@asynccontextmanager
async def open_attaching(
    environment: Environment, configured: Path, plugins: Sequence[Path] = PLUGIN_DIRECTORIES
) -> AsyncIterator[Attaching]:
    """The provider of an agent that nobody else shares; whatever it attached, and its firewall, goes at the end.

    No process of Perdure may serve the same network meanwhile: to either, the other's runtimes are strangers.
    """
    installation, damaged = InstallationId(str(uuid.uuid4())), list[Uid]()
    node = _settings(environment, configured, tuple(plugins))
    networks = await open_networks(installation, node, damaged.append, frozenset)
    cni = networks.upkeep.sandbox
    network = await cni.network()
    try:
        yield Attaching(networks, network, damaged)
    finally:
        for uid in await cni.inventory():
            await cni.discard(uid)
        rules = rules_of(owner_of(installation, node.name), network, frozenset())
        if rules is not None:
            await Firewall(rules).remove()


@dataclass(frozen=True, slots=True)
class AttachingCtr:
    """A namespace, an ADD of every plugin, and then ``ctr run -d`` in that namespace. No firewall."""

    ctr: Ctr
    client: CniClient
    network: Network
    names: Path

    @classmethod
    async def prepared(cls, environment: Environment, configured: Path) -> "AttachingCtr":
        """With the image in a containerd namespace of its own, and records of its own."""
        folder = environment.run_directory / "ctr-cni"
        loaded = await asyncio.to_thread(configuration.load, configured)
        client = CniClient(PLUGIN_DIRECTORIES, folder, PLUGIN_SECONDS)
        return cls(await Ctr.prepared(environment), client, loaded.network, folder / "netns")

    async def run(self, port: int | None = None) -> tuple[str, Attachment, float]:
        """The container's id, what it was attached with, and seconds from nothing to a started task."""
        attachment = attachment_at(self.names / str(uuid.uuid4()), port)
        path = Path(attachment.netns)
        began = time.perf_counter()
        await asyncio.to_thread(netns.create, path)
        await self.client.add(self.network, attachment)
        container, _ = await self.ctr.run(path)
        return container, attachment, time.perf_counter() - began

    async def remove(self, container: str, attachment: Attachment) -> None:
        """Kill it and remove everything of it, its network last."""
        await self.ctr.remove(container)
        await self.client.delete(self.network, attachment)
        await asyncio.to_thread(netns.remove, Path(attachment.netns))


def attachment_at(path: Path, port: int | None = None) -> Attachment:
    """One interface in the namespace of that name, which is the container's id as well; ``port`` leads into it."""
    mappings = () if port is None else (PortMapping(port, CONTAINER_PORT, "tcp"),)
    return Attachment(path.name, str(path), IFNAME, Capabilities(port_mappings=mappings))


def _settings(environment: Environment, configured: Path, plugins: tuple[Path, ...]) -> NodeSettings:
    for folder in plugins:
        if folder.is_dir():
            break
    else:
        raise BenchmarkError("no network plugins are here; on Debian: apt-get install containernetworking-plugins")
    return NodeSettings(
        name=NodeName("bench"),
        containerd_address=environment.engine.address,
        engine_namespace=ENGINE_NAMESPACE,
        runc_root=environment.engine.runc_root,
        cgroup_parent=environment.cgroup_parent,
        state_dir=environment.directory / "engine-state",
        run_dir=environment.run_directory / "engine",
        archive_dir=environment.directory / "engine-state" / "archives",
        cni_conf_dir=configured,
        cni_network=None,
        cni_bin_dirs=plugins,
        allocatable_millicores=1000,
        allocatable_bytes=1 << 40,
        max_concurrent_starts=1,
    )
