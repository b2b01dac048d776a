"""A node in a network namespace of the test's own: a bridge with members, and a world outside. Removed as a whole.

Sockets are made by a thread that has entered a namespace and stays theirs, so tests talk through them directly.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
import uuid
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path

from perdure.api.names import InstallationId, NamespaceUid, Uid
from perdure.network.command import Launcher
from perdure.network.rules import Member, NetworkRules, NodePort, Transport

BRIDGE = "br0"
GATEWAY4, GATEWAY6 = "10.88.0.1", "fd88::1"
OUTSIDE4, OUTSIDE6 = "192.0.2.2", "2001:db8::2"
METADATA4 = ("169.254.169.254", "100.100.100.200")
METADATA6 = ("fd00:ec2::254", "fd20:ce::254", "fd00:c1::a9fe:a9fe")
WAIT_SECONDS = 10.0
"""For what must arrive."""
SILENCE_SECONDS = 0.4
"""For what must not: an answer within one machine takes less than a millisecond."""

RULES = NetworkRules(
    InstallationId("an-installation"),
    "agents",
    BRIDGE,
    (ip_network("10.88.0.0/24"), ip_network("fd88::/64")),
    open_ports=frozenset({NodePort(Transport.TCP, 53)}),
)

_libc = ctypes.CDLL(None, use_errno=True)


def in_namespace(name: str, kind: socket.SocketKind, family: socket.AddressFamily, protocol: int = 0) -> socket.socket:
    made: list[socket.socket] = []

    def enter() -> None:
        descriptor = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(descriptor, 0) == 0:
                made.append(socket.socket(family, kind, protocol))
        finally:
            os.close(descriptor)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    (one,) = made
    one.settimeout(WAIT_SECONDS)
    return one


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@dataclass(slots=True)
class Node:
    name: str = field(default_factory=lambda: f"pt{uuid.uuid4().hex[:8]}")
    spaces: list[str] = field(default_factory=list)

    @property
    def launcher(self) -> Launcher:
        return ("ip", "netns", "exec", self.name)

    def run(self, *command: str, feed: str = "", space: str | None = None) -> str:
        return subprocess.run(
            ["ip", "netns", "exec", space or self.name, *command],
            input=feed,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout

    def batch(self, space: str, *lines: str) -> None:
        self.run("ip", "-batch", "-", feed="\n".join(lines), space=space)

    def start(self) -> None:
        """The bridge, and outside a namespace with a server's addresses and those of a cloud's metadata service."""
        outside = self.space("out")
        for space in (self.name, outside):
            self._add(space)
        self.batch(
            self.name,
            "link set lo up",
            f"link add {BRIDGE} address 02:00:00:00:88:01 type bridge",
            f"addr add {GATEWAY4}/24 dev {BRIDGE}",
            f"addr add {GATEWAY6}/64 dev {BRIDGE} nodad",
            f"link set {BRIDGE} up",
            f"link add wan0 type veth peer name eth0 netns {outside}",
            "addr add 192.0.2.1/24 dev wan0",
            "addr add 2001:db8::1/64 dev wan0 nodad",
            "link set wan0 up",
            *(f"route add {address}/32 via {OUTSIDE4}" for address in METADATA4),
            *(f"route add {address}/128 via {OUTSIDE6}" for address in METADATA6),
        )
        self.batch(
            outside,
            "link set lo up",
            f"addr add {OUTSIDE4}/24 dev eth0",
            f"addr add {OUTSIDE6}/64 dev eth0 nodad",
            *(f"addr add {address}/32 dev eth0" for address in METADATA4),
            *(f"addr add {address}/128 dev eth0 nodad" for address in METADATA6),
            "link set eth0 up",
        )
        self.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        self.filter_bridged_as_routed(False)

    def filter_bridged_as_routed(self, whether: bool) -> None:
        """What br_netfilter adds where it is loaded: the inet hooks see bridged packets too."""
        keys = (f"net.bridge.bridge-nf-call-{words}={int(whether)}" for words in ("iptables", "ip6tables"))
        self.run("sysctl", "-eqw", *keys)

    def member(self, number: int, namespace: str) -> Member:
        """A runtime with addresses ending in `number`; its uid is the name of its network namespace."""
        space, port, mac = self.space(f"m{number}"), f"veth{number}", f"02:00:00:00:00:{number:02x}"
        self._add(space)
        self.batch(
            self.name,
            f"link add {port} type veth peer name eth0 address {mac} netns {space}",
            f"link set {port} master {BRIDGE} up",
        )
        self.batch(
            space,
            "link set lo up",
            f"addr add 10.88.0.{number}/24 dev eth0",
            f"addr add fd88::{number:x}/64 dev eth0 nodad",
            "link set eth0 up",
            f"route add default via {GATEWAY4}",
            f"route add ::/0 via {GATEWAY6}",
        )
        addresses = (ip_address(f"10.88.0.{number}"), ip_address(f"fd88::{number:x}"))
        return Member(Uid(space), NamespaceUid(namespace), port, mac, addresses)

    def space(self, name: str) -> str:
        return f"{self.name}-{name}"

    def _add(self, space: str) -> None:
        """Without duplicate address detection: a node forwards nothing over IPv6 for the second or two that it takes."""
        self.spaces.append(space)
        subprocess.run(["ip", "netns", "add", space], check=True, timeout=30)
        self.run("sysctl", "-qw", *(f"net.ipv6.conf.{which}.accept_dad=0" for which in ("all", "default")), space=space)

    def remove(self) -> None:
        for space in self.spaces:
            if Path("/run/netns", space).exists():
                subprocess.run(["ip", "netns", "delete", space], check=True, timeout=30)

    def listen(self, space: str, address: str, port: int) -> socket.socket:
        server = in_namespace(space, socket.SOCK_STREAM, family_of(address))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen(16)
        return server

    def connect(self, space: str, address: str, port: int, seconds: float = WAIT_SECONDS) -> socket.socket:
        client = in_namespace(space, socket.SOCK_STREAM, family_of(address))
        client.settimeout(seconds)
        try:
            client.connect((address, port))
        except OSError:
            client.close()
            raise
        return client

    def delivers(self, space: str, source: str, server: socket.socket, seconds: float = WAIT_SECONDS) -> bool:
        """Whether a datagram from `source` in `space` arrives at `server`, and bears that address."""
        with in_namespace(space, socket.SOCK_DGRAM, server.family) as client:
            client.bind((source, 0))
            client.sendto(b"hello", server.getsockname()[:2])
        server.settimeout(seconds)
        try:
            _, peer = server.recvfrom(16)
        except TimeoutError:
            return False
        return bool(peer[0] == source)

    def loses(self, space: str, source: str, server: socket.socket) -> bool:
        """Whether nothing comes of what `delivers` sends."""
        return not self.delivers(space, source, server, SILENCE_SECONDS)

    def receive(self, space: str, address: str, port: int) -> socket.socket:
        server = in_namespace(space, socket.SOCK_DGRAM, family_of(address))
        server.bind((address, port))
        return server

    def reaches(self, space: str, address: str, port: int, seconds: float = WAIT_SECONDS) -> bool:
        """Whether a TCP connection opens. A refusal counts as reaching: somebody answered."""
        try:
            self.connect(space, address, port, seconds).close()
        except OSError as error:
            return isinstance(error, ConnectionRefusedError)
        return True

    def is_silent(self, space: str, address: str, port: int) -> bool:
        """Whether nobody answers."""
        return not self.reaches(space, address, port, SILENCE_SECONDS)
