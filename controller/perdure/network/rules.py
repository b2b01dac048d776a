"""What the node's firewall is to hold for one network: the network, its members, and who may reach whom. Pure values.

Made by sandboxes from the node's configuration and the runtimes that are here; read by `ruleset`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_network
from itertools import combinations
from typing import NamedTuple

from perdure.api.names import InstallationId, NamespaceUid, NodeName, Uid

Address = IPv4Address | IPv6Address
Subnet = IPv4Network | IPv6Network

_LINK_NAME = re.compile(r"[A-Za-z0-9_.-]{1,15}")
"""What we accept as a link's name: the kernel's length limit (IFNAMSIZ), and nothing that nft's grammar reads otherwise."""
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")

METADATA = tuple(
    ip_network(one)
    for one in (
        "100.100.100.200/32",  # Alibaba Cloud ECS (cloud-init, datasource AliYun)
        "169.254.0.0/16",  # nearly all clouds, 169.254.169.254 as a rule; link-local, so never routed (RFC 3927)
        "fd00:c1::a9fe:a9fe/128",  # Oracle Cloud (OCI), instances with IPv6
        "fd00:ec2::254/128",  # Amazon EC2 ("Use the Instance Metadata Service")
        "fd20:ce::254/128",  # Google Compute Engine, instances with IPv6 alone
    )
)
"""Where clouds answer with a node's credentials."""


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


RESOLVER = frozenset({NodePort(Transport.UDP, 53), NodePort(Transport.TCP, 53)})
"""What a name server is asked on (RFC 1035, section 4.2)."""


@dataclass(frozen=True, slots=True)
class NetworkRules:
    """What is on one bridge of this node for one installation: as a rule one network, and all whose configuration named this
    bridge as long as runtimes are on them. `name` is for messages: the networks'.

    Raises `ValueError` for what cannot be told apart or programmed."""

    installation: InstallationId
    name: str
    bridge: str
    subnets: tuple[Subnet, ...]
    open_ports: frozenset[NodePort] = frozenset()
    unreachable: tuple[Subnet, ...] = METADATA
    """Destinations that no runtime reaches, whoever allows what."""
    resolvers: tuple[Address, ...] = ()
    """Of those, the ones that runtimes may ask for names, and for nothing else."""

    def __post_init__(self) -> None:
        _checked_link(self.bridge)
        if not self.subnets:
            raise ValueError(f"network {self.name} has no subnet")
        for one, other in combinations(self.subnets, 2):
            if one.version == other.version and one.overlaps(other):
                raise ValueError(f"subnets {one} and {other} of network {self.name} overlap")

    @property
    def table(self) -> str:
        """Name of our tables: two installations, or two bridges, on one host have different ones. Two networks on one bridge
        have one together: each of two would drop what the other's members send."""
        return table_prefix(self.installation) + _digest(self.bridge)


def owner_of(installation: InstallationId, node: NodeName) -> InstallationId:
    """Two agents of one installation on one host have tables and ids of their own, and remove none of each other's."""
    return InstallationId(f"{installation}/{node}")


def table_prefix(installation: InstallationId) -> str:
    """How the names of all tables of the installation begin, and of no other's."""
    return f"perdure-{_digest(installation)}-"


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:12]


def merged(subnets: Iterable[Subnet]) -> tuple[Subnet, ...]:
    """The same addresses, IPv4 first, in subnets that do not overlap."""
    given = tuple(subnets)
    return (
        *collapse_addresses(one for one in given if isinstance(one, IPv4Network)),
        *collapse_addresses(one for one in given if isinstance(one, IPv6Network)),
    )


def beyond(own: Iterable[Subnet], others: Iterable[Subnet]) -> tuple[Subnet, ...]:
    """What no runtime on a bridge with the subnets `own` reaches: the metadata addresses, and runtimes on other bridges.
    Who has an address in a subnet of both is told by the sets of members."""
    found: list[Subnet] = list(others)
    for mine in own:
        found = [part for one in found for part in _without(one, mine)]
    return merged((*METADATA, *found))


def _without(one: Subnet, mine: Subnet) -> Iterable[Subnet]:
    if isinstance(one, IPv4Network) and isinstance(mine, IPv4Network):
        return () if one.subnet_of(mine) else one.address_exclude(mine) if mine.subnet_of(one) else (one,)
    if isinstance(one, IPv6Network) and isinstance(mine, IPv6Network):
        return () if one.subnet_of(mine) else one.address_exclude(mine) if mine.subnet_of(one) else (one,)
    return (one,)


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


class Allowed(NamedTuple):
    """`source` may begin to talk to `target`, which may answer. Runtimes of one namespace need no such pair. A tuple, as
    there are tens of thousands, which are compared with each arrival."""

    source: Uid
    target: Uid


def _checked_link(name: str) -> None:
    if not _LINK_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a link's name")
