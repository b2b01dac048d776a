"""What the node's firewall is to hold for one network: the network, its members, and who may reach whom. Pure values.

Made by sandboxes from the node's configuration and the runtimes that are here; read by `ruleset`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from itertools import combinations

from perdure.api.names import InstallationId, NamespaceUid, Uid

Address = IPv4Address | IPv6Address
Subnet = IPv4Network | IPv6Network

_LINK_NAME = re.compile(r"[A-Za-z0-9_.-]{1,15}")
"""What we accept as a link's name: the kernel's length limit (IFNAMSIZ), and nothing that nft's grammar reads otherwise."""
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")

METADATA = (ip_network("169.254.0.0/16"), ip_network("fd00:ec2::254/128"))
"""Where clouds answer with a node's credentials; and the rest of IPv4's link-local range, which is never routed."""


class Transport(StrEnum):
    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, slots=True, order=True)
class NodePort:
    """A port of the node itself that runtimes may reach, such as UDP and TCP 53 where the node answers DNS for them."""

    transport: Transport
    number: int

    def __post_init__(self) -> None:
        if not 0 < self.number < 65536:
            raise ValueError(f"port {self.number} is not between 1 and 65535")


@dataclass(frozen=True, slots=True)
class NetworkRules:
    """One network of one installation on this node. Raises `ValueError` for what cannot be told apart or programmed."""

    installation: InstallationId
    name: str
    bridge: str
    subnets: tuple[Subnet, ...]
    open_ports: frozenset[NodePort] = frozenset()
    unreachable: tuple[Subnet, ...] = METADATA
    """Destinations that no runtime reaches, whoever allows what."""

    def __post_init__(self) -> None:
        _checked_link(self.bridge)
        if not self.subnets:
            raise ValueError(f"network {self.name} has no subnet")
        for one, other in combinations(self.subnets, 2):
            if one.version == other.version and one.overlaps(other):
                raise ValueError(f"subnets {one} and {other} of network {self.name} overlap")

    @property
    def table(self) -> str:
        """Name of our tables: two installations, or two networks, on one host have different ones."""
        digest = hashlib.sha256(f"{self.installation}\0{self.name}".encode()).hexdigest()
        return f"perdure-{digest[:12]}"


@dataclass(frozen=True, slots=True)
class Member:
    """One runtime on the network: the bridge port on the node's side, and what may come out of it."""

    uid: Uid
    namespace: NamespaceUid
    port: str
    """Name of the host side's link."""
    mac: str
    """Of the runtime's own interface, in lower case."""
    addresses: tuple[Address, ...]

    def __post_init__(self) -> None:
        _checked_link(self.port)
        if not _MAC.fullmatch(self.mac):
            raise ValueError(f"{self.mac!r} of {self.uid} is not a MAC address in lower case")

    @property
    def link_local(self) -> IPv6Address:
        """The address that the kernel gives the runtime's interface itself (RFC 4291, appendix A)."""
        octets = bytes.fromhex(self.mac.replace(":", ""))
        interface = bytes([octets[0] ^ 2, octets[1], octets[2], 0xFF, 0xFE, octets[3], octets[4], octets[5]])
        return IPv6Address(b"\xfe\x80" + bytes(6) + interface)


@dataclass(frozen=True, slots=True)
class Allowed:
    """`source` may begin to talk to `target`, which may answer. Runtimes of one namespace need no such pair."""

    source: Uid
    target: Uid


def _checked_link(name: str) -> None:
    if not _LINK_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a link's name")
