"""A node of the test's own: a network namespace that the test itself runs in, a CNI configuration, and an agent's networks.

What the test starts, threads and processes, is in the namespace with it; so everything that an agent does to its node's
links and rules, flushes included, is done where nobody else is, and goes with the namespace.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.contract.engine_rig import new_ref

from perdure.api.names import InstallationId, NodeName, RuntimeRef, Uid
from perdure.api.network import Network, NetworkMode, NetworkPolicy, PortProtocol, RuntimePort
from perdure.api.runtime import RuntimeSpec
from perdure.cli.networks import Networks, Patience, open_networks
from perdure.cli.settings import NodeSettings
from perdure.network import leftovers, netns
from perdure.network.cni import configuration
from perdure.network.container_ids import ContainerIds
from perdure.network.rules import owner_of
from perdure.plan.world import HostPort
from perdure.reconcile.ports.sandbox import SandboxPlan

PLUGINS = Path("/usr/lib/cni")
NAME, BRIDGE = "agents", "agents0"
SUBNET4, SUBNET6 = "10.89.0.0/24", "fd89::/64"
GATEWAY4 = "10.89.0.1"
INSTALLATION = InstallationId("11111111-0000-4000-8000-000000000001")
NAME_OF_NODE = NodeName("own")
WAIT_SECONDS = 20.0
"""For what must arrive."""
CLONE_NEWNET = 0x4000_0000

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def own_namespace() -> Iterator[None]:
    """The calling thread, and whatever it starts, in a new network namespace; back where it was afterwards."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(CLONE_NEWNET))
        run("ip", "link", "set", "lo", "up")
        run("sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
        yield
    finally:
        _check(_libc.setns(before, CLONE_NEWNET))
        os.close(before)


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def socket_in(path: Path, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    """A TCP socket of the network namespace at `path`; whoever has it talks from there."""
    made: list[socket.socket] = []

    def enter() -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(descriptor, CLONE_NEWNET))
            made.append(socket.socket(family))
        finally:
            os.close(descriptor)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    (one,) = made
    one.settimeout(WAIT_SECONDS)
    return one


def run(*command: str, feed: str = "") -> str:
    return subprocess.run(command, input=feed, capture_output=True, text=True, timeout=60, check=True).stdout


def bridge(*subnets: str, **members: Any) -> dict[str, Any]:
    """The first plugin, with one address from each subnet; `dataDir` is set when it is written."""
    given = subnets or (SUBNET4,)
    routes = [{"dst": "::/0" if ":" in subnet else "0.0.0.0/0"} for subnet in given]
    ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}] for subnet in given], "routes": routes}
    return {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "hairpinMode": True, "ipam": ipam, **members}


PORTMAP: dict[str, Any] = {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}}


@dataclass
class OwnNode:
    """`folder`: everything on disk. `known` is what the journal would say, `woken` whom the loop would look at."""

    folder: Path
    plugins: tuple[Path, ...] = (PLUGINS,)
    known: set[Uid] = field(default_factory=set)
    woken: list[Uid] = field(default_factory=list)
    patience: Patience = field(default_factory=lambda: Patience(leftover_seconds=0.0))

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def configurations(self) -> Path:
        return self.folder / "net.d"

    @property
    def leases(self) -> Path:
        return self.folder / "ipam"

    def write(self, *plugins: dict[str, Any], file: str = "10-agents.conflist", **members: Any) -> None:
        """A configuration; without plugins the usual one."""
        listed = [json.loads(json.dumps(plugin)) for plugin in plugins or (bridge(), PORTMAP)]
        for plugin in listed:
            if plugin.get("ipam", {}).get("type") == "host-local":
                plugin["ipam"].setdefault("dataDir", str(self.leases))
        self.configure(json.dumps({"cniVersion": "1.0.0", "name": NAME, "plugins": listed, **members}), file)

    def configure(self, text: str, file: str = "10-agents.conflist") -> None:
        self.configurations.mkdir(exist_ok=True)
        (self.configurations / file).write_text(text)

    async def agent(self) -> Networks:
        """A new process's networks, over what an earlier one left."""
        settings = NodeSettings(
            name=NAME_OF_NODE,
            containerd_address=self.folder / "no-engine",
            engine_namespace="none",
            runc_root=None,
            cgroup_parent="",
            state_dir=self.folder / "state",
            run_dir=self.run_dir,
            archive_dir=self.folder / "archives",
            cni_conf_dir=self.configurations,
            cni_network=None,
            cni_bin_dirs=self.plugins,
            allocatable_millicores=0,
            allocatable_bytes=0,
            max_concurrent_starts=1,
        )
        return await open_networks(
            INSTALLATION, settings, self.woken.append, lambda: frozenset(self.known), self.patience
        )

    def network(self) -> configuration.Network:
        return configuration.load(self.configurations).network

    def plan(self, *ports: HostPort, of: RuntimeRef | None = None, policy: NetworkPolicy | None = None) -> SandboxPlan:
        """Of a new runtime that asks for a network, in the namespace that `of` is in; the journal knows it from now on."""
        ref = new_ref(f"own-{uuid.uuid4().hex[:6]}")
        if of is not None:
            ref = replace(ref, namespace=of.namespace, namespace_uid=of.namespace_uid)
        self.known.add(ref.uid)
        asked = tuple(RuntimePort(name=port.name, container_port=80, protocol=PortProtocol.TCP) for port in ports)
        spec = RuntimeSpec(image="any", network=Network(mode=NetworkMode.CNI, policy=policy), ports=asked)
        return SandboxPlan(ref, spec, ports)

    def container(self, uid: Uid) -> str:
        """What plugins know it by."""
        return ContainerIds.of(owner_of(INSTALLATION, NAME_OF_NODE)).id(uid)

    def netns(self, uid: Uid) -> Path:
        return self.run_dir / "cni/netns" / uid

    def inside(self, uid: Uid, *command: str) -> str:
        return run("nsenter", f"--net={self.netns(uid)}", *command)

    def addresses(self, uid: Uid) -> list[str]:
        """What the kernel has on the interface, but for link-local addresses."""
        (shown,) = json.loads(self.inside(uid, "ip", "-j", "address", "show", "dev", "eth0"))
        return [one["local"] for one in shown["addr_info"] if one["scope"] == "global"]

    def listen(self, uid: Uid, address: str, port: int = 80) -> socket.socket:
        server = socket_in(self.netns(uid), socket.AF_INET6 if ":" in address else socket.AF_INET)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen(8)
        return server

    def led_in(self, uid: Uid) -> set[int]:
        """The TCP ports that the kernel's rules lead into it, according to what is addressed to its own addresses."""
        rules = run("iptables-save", "-t", "nat") + run("ip6tables-save", "-t", "nat")
        own = {f"[{address}]" if ":" in address else address for address in self.addresses(uid)}
        found = re.findall(r"^-A CNI-DN-\S+ .*--dport (\d+) .*--to-destination (\S+):\d+$", rules, re.MULTILINE)
        return {int(number) for number, target in found if target in own}

    def answers(self, uid: Uid, number: int, container_port: int = 80) -> bool:
        """Whether a connection to a port of the node arrives in the runtime."""
        with self.listen(uid, self.addresses(uid)[0], container_port) as server:
            try:
                client = socket.create_connection((GATEWAY4, number), timeout=WAIT_SECONDS)
            except ConnectionRefusedError:
                return False
            with client:
                server.settimeout(WAIT_SECONDS)
                server.accept()[0].close()
            return True

    def links(self) -> list[str]:
        return [one["ifname"] for one in json.loads(run("ip", "-j", "link"))]

    def leased(self) -> list[str]:
        return [file.name for file in sorted(self.leases.glob("*/*")) if file.name[0].isdigit() or ":" in file.name]

    def lessees(self) -> set[str]:
        """Who has an address, according to host-local's files; one that goes meanwhile is nobody's."""
        return {found.container for store in self.leases.glob("*") for found in leftovers.reserved(store)}

    def traces(self) -> list[str]:
        """Whatever there is of any runtime, in files and in the kernel; empty where nothing was or all is gone."""
        return [
            *(f"address {address}" for address in self.leased()),
            *(f"file {file}" for part in ("results", "attached", "netns") for file in self._files(part)),
            *(f"link {name}" for name in self.links() if name not in ("lo", BRIDGE)),
            *(
                f"rule {line}"
                for program in ("iptables", "ip6tables")
                for line in run(f"{program}-save").splitlines()
                if ' id: \\"' in line or line.startswith(":CNI-DN-") or "-A CNI-DN-" in line
            ),
            *(f"element {element}" for element in self.elements()),
        ]

    def _files(self, part: str) -> list[str]:
        folder = self.run_dir / "cni" / part
        return sorted(f"{part}/{entry.name}" for entry in folder.iterdir()) if folder.exists() else []

    def elements(self) -> list[str]:
        """Of the firewall's sets and maps, but for those that are the same whoever is there."""
        listed = json.loads(run("nft", "-j", "list", "ruleset"))["nftables"]
        return [
            f"{found['name']}: {json.dumps(element)}"
            for entry in listed
            for found in (entry.get("set"), entry.get("map"))
            if found is not None and found["table"].startswith("perdure-")
            for element in found.get("elem", ())
        ]

    def reboot(self) -> None:
        """What outlives nothing: names of namespaces, links, rules, the run folder."""
        self._forget_namespaces()
        for name in self.links():
            if name != "lo" and not name.startswith("veth"):  # those went with the namespaces
                run("ip", "link", "delete", name)
        run("nft", "flush", "ruleset")
        shutil.rmtree(self.run_dir)

    def remove(self) -> None:
        self._forget_namespaces()
        shutil.rmtree(self.folder)

    def _forget_namespaces(self) -> None:
        for folder in self.folder.rglob("netns"):
            for name in netns.names(folder):
                netns.remove(folder / name)


@contextmanager
def own_node() -> Iterator[OwnNode]:
    """With the namespace around it."""
    with own_namespace():
        node = OwnNode(Path(tempfile.mkdtemp(prefix="perdure-test-", dir="/run")))
        try:
            yield node
        finally:
            node.remove()


def tcp(number: int, name: str = "game", container_port: int = 80) -> HostPort:
    return HostPort(name, "TCP", container_port, number)
