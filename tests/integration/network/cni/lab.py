"""A node in network namespaces of its own: plugins run inside one, and another stands for the world outside."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perdure.network import netns
from perdure.network.cni.attachment import Attachment, Capabilities
from perdure.network.cni.client import CniClient
from perdure.network.cni.configuration import Network, parse

NODE_ADDRESS = "192.0.2.1"
OUTSIDE_ADDRESS = "192.0.2.2"
SUBNET4 = "10.77.0.0/24"
SUBNET6 = "fd77::/64"

SERVER = """
import socket, sys
with socket.create_server(("", int(sys.argv[1]))) as server:
    print("ready", flush=True)
    while True:
        connection, _ = server.accept()
        connection.sendall(b"hello")
        connection.close()
"""
ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as connection:
    print(connection.recv(100).decode())
"""


class Lab:
    """`folder`: everything on disk. Names in /run/netns are random, so labs of other processes are never met."""

    def __init__(self, folder: Path, plugins: Path) -> None:
        self.folder = folder
        self.plugins = plugins
        self.node = f"perdure-{uuid.uuid4().hex[:8]}"
        self.outside = f"{self.node}-out"
        self.data = folder / "ipam"

    def build(self) -> None:
        for name in (self.node, self.outside):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", self.node, "link", "add", "up0", "type", "veth", "peer", "name", "out0", "netns", self.outside)
        for name, link, address in ((self.node, "up0", NODE_ADDRESS), (self.outside, "out0", OUTSIDE_ADDRESS)):
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", link)
            run("ip", "-n", name, "link", "set", link, "up")

    def tear_down(self) -> None:
        for path in (self.folder / "netns").glob("*"):
            netns.remove(path)
        for name in (self.node, self.outside):
            if Path("/run/netns", name).exists():
                run("ip", "netns", "del", name)
        shutil.rmtree(self.folder)

    def client(self, seconds: float = 60.0) -> CniClient:
        return CniClient([self.plugins], self.folder / "cache", seconds, ("nsenter", f"--net=/run/netns/{self.node}"))

    def attachment(self, container_id: str, capabilities: Capabilities | None = None) -> Attachment:
        path = self.folder / "netns" / container_id
        netns.create(path)
        return Attachment(container_id, str(path), capabilities=capabilities or Capabilities())

    def lose_netns(self, attachment: Attachment) -> None:
        netns.remove(Path(attachment.netns))

    def leave_plain_file(self, attachment: Attachment) -> None:
        """What a reboot leaves, where the folder outlives it."""
        Path(attachment.netns).touch()

    def ipam(self, *subnets: str) -> dict[str, Any]:
        routes = [{"dst": "::/0" if ":" in subnet else "0.0.0.0/0"} for subnet in subnets]
        ranges = [[{"subnet": subnet}] for subnet in subnets]
        return {"type": "host-local", "dataDir": str(self.data), "ranges": ranges, "routes": routes}

    def bridge(self, *subnets: str, **members: object) -> dict[str, Any]:
        ipam = self.ipam(*(subnets or (SUBNET4,)))
        return {"type": "bridge", "bridge": "lab0", "isGateway": True, "hairpinMode": True, "ipam": ipam, **members}

    def network(self, *plugins: dict[str, Any], version: str = "1.0.0") -> Network:
        listed = {"cniVersion": version, "name": "lab", "plugins": list(plugins)}
        return parse(json.dumps(listed).encode(), "the lab")

    def whole_network(self) -> Network:
        """Everything that this project's own network is made of."""
        portmap = {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}}
        bandwidth = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
        return self.network(self.bridge(ipMasq=True), portmap, {"type": "firewall"}, bandwidth)

    def on_node(self, *command: str) -> str:
        return run("nsenter", f"--net=/run/netns/{self.node}", *command)

    def inside(self, attachment: Attachment, *command: str) -> str:
        return run("nsenter", f"--net={attachment.netns}", *command)

    def addresses(self, attachment: Attachment, ifname: str = "eth0") -> list[str]:
        """What the kernel has on the interface, but for link-local addresses."""
        (shown,) = json.loads(self.inside(attachment, "ip", "-j", "address", "show", "dev", ifname))
        return [one["local"] for one in shown["addr_info"] if one["scope"] == "global"]

    def index(self, attachment: Attachment) -> int:
        (shown,) = json.loads(self.inside(attachment, "ip", "-j", "link", "show", "dev", "eth0"))
        return int(shown["ifindex"])

    def links(self) -> set[str]:
        return {one["ifname"] for one in json.loads(self.on_node("ip", "-j", "link"))}

    def ports(self) -> set[str]:
        """Links that a plugin made for an attachment."""
        return self.links() - {"lo", "up0", "lab0", "lab1"}

    def rules(self) -> str:
        return self.on_node("iptables-save") + self.on_node("ip6tables-save")

    def leased(self) -> set[str]:
        """Addresses that host-local has given out."""
        return {path.name for path in self.data.glob("lab/*") if path.name[0].isdigit() or path.name.startswith("fd")}

    @contextmanager
    def server(self, attachment: Attachment, port: int) -> Iterator[None]:
        command = ["nsenter", f"--net={attachment.netns}", sys.executable, "-c", SERVER, str(port)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                yield
            finally:
                process.kill()

    def ask_from_outside(self, address: str, port: int) -> str | None:
        """What a TCP server answers to somebody outside; None where nothing does."""
        command = ["nsenter", f"--net=/run/netns/{self.outside}", sys.executable, "-c", ASK, address, str(port)]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        return answer.stdout.strip() if answer.returncode == 0 else None


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
