"""What a runtime asks of the network, and what it got: the parts of spec and status that are about it, typed.

`perdure.api.runtime` puts them into a runtime. What each field means is said in the CRD.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

import msgspec

from perdure.api.names import Kind
from perdure.api.struct import Struct

_PortNumber = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class NetworkMode(StrEnum):
    CNI = "cni"
    NONE = "none"


class PortProtocol(StrEnum):
    TCP = "TCP"
    UDP = "UDP"
    TCPUDP = "TCPUDP"
    """Both, under one number."""


class PortPolicy(StrEnum):
    DYNAMIC = "Dynamic"
    """The number is drawn from the range that the controller was given."""
    STATIC = "Static"
    NONE = "None"
    """Not on the node at all: the port is only named."""


class Dns(Struct, frozen=True, kw_only=True):
    nameservers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class NetworkPeer(Struct, frozen=True, kw_only=True):
    """Who may connect: every field that is set narrows it."""

    namespace: str | None = None
    """None: the runtime's own."""
    kind: Kind | None = None
    name: str | None = None


class NetworkPolicy(Struct, frozen=True, kw_only=True):
    allow_from: tuple[NetworkPeer, ...] = ()


class Network(Struct, frozen=True, kw_only=True):
    mode: NetworkMode | None = None
    """None: as the node can; see `network_mode`."""
    policy: NetworkPolicy | None = None
    dns: Dns | None = None


class HostAlias(Struct, frozen=True, kw_only=True):
    ip: str
    hostnames: tuple[str, ...]


class RuntimePort(Struct, frozen=True, kw_only=True):
    name: str
    container_port: int
    protocol: PortProtocol = PortProtocol.TCP
    policy: PortPolicy = PortPolicy.DYNAMIC
    host_port: int | None = None
    """With policy Static, and only then."""


class PortStatus(Struct, frozen=True, kw_only=True):
    """One port as the node serves it now."""

    name: str
    protocol: PortProtocol
    container_port: int
    host_port: int | None = None


def network_mode(network: Network, *, node_has_cni: bool) -> NetworkMode:
    """What a runtime gets on a node: what it asks for, else what the node can."""
    if network.mode is not None:
        return network.mode
    return NetworkMode.CNI if node_has_cni else NetworkMode.NONE


def read_host_ports(annotation: str | None) -> Mapping[str, int]:
    """Port name -> number on the node. What is no such thing is as if it were not there: the controller publishes anew."""
    try:
        return msgspec.json.decode(annotation or "{}", type=dict[str, _PortNumber])
    except (msgspec.DecodeError, UnicodeError):
        return {}


def write_host_ports(ports: Mapping[str, int]) -> str | None:
    """The same as text, always the same for the same ports; None where there are none."""
    return msgspec.json.encode(dict(ports), order="sorted").decode() if ports else None
