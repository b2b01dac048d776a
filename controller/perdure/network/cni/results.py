"""What an ADD answers: the interfaces, addresses, routes and DNS settings of an attachment (specification, section 5).

Read leniently, because versions 0.3.1 to 1.1.0 differ in members that nothing here needs, and Go writes `null` for "none".
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_interface, ip_network

import msgspec

from perdure.network.cni.configuration import SUPPORTED_VERSIONS
from perdure.network.cni.documents import Malformed, decode, decode_document, encode, raw

Address = IPv4Address | IPv6Address


class Interface(msgspec.Struct, frozen=True):
    """`sandbox` is the path of the network namespace, or empty for an interface of the node."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""


class AssignedAddress(msgspec.Struct, frozen=True):
    """`address` and `gateway` as written: CIDR notation and a plain address; `interface` indexes the interfaces."""

    address: str
    gateway: str | None = None
    interface: int | None = None


class Route(msgspec.Struct, frozen=True):
    dst: str
    gw: str | None = None


class ResultDns(msgspec.Struct, frozen=True):
    nameservers: tuple[str, ...] | None = None
    domain: str = ""
    search: tuple[str, ...] | None = None
    options: tuple[str, ...] | None = None


class _Members(msgspec.Struct, rename="camel"):
    cni_version: str = ""
    interfaces: tuple[Interface, ...] | None = None
    ips: tuple[AssignedAddress, ...] | None = None
    routes: tuple[Route, ...] | None = None
    dns: ResultDns | None = None


class Result(msgspec.Struct, frozen=True):
    """`document` is the JSON that later plugins get as `prevResult`: what the plugin wrote, in the network's version."""

    interfaces: tuple[Interface, ...]
    ips: tuple[AssignedAddress, ...]
    routes: tuple[Route, ...]
    dns: ResultDns
    document: bytes


def parse(data: bytes, cni_version: str) -> Result:
    """A result in any of the supported versions, taken over into `cni_version`. Raises `Malformed`."""
    document = decode_document(data)
    members = decode(data, _Members)
    if members.cni_version and members.cni_version not in SUPPORTED_VERSIONS:
        raise Malformed(f"a result of version {members.cni_version}, but {cni_version} was asked for")
    return Result(
        interfaces=members.interfaces or (),
        ips=members.ips or (),
        routes=members.routes or (),
        dns=members.dns or ResultDns(),
        document=encode({**document, "cniVersion": raw(cni_version)}),
    )


def default_routes(result: Result) -> tuple[IPv4Network | IPv6Network, ...]:
    """Destinations of the routes to everywhere. A destination that is none is left out."""
    found = []
    for route in result.routes:
        try:
            network = ip_network(route.dst)
        except ValueError:
            continue
        if network.prefixlen == 0:
            found.append(network)
    return tuple(found)


def addresses(result: Result, ifname: str) -> tuple[Address, ...]:
    """The addresses that others can reach the sandbox at, IPv4 first, else in the plugin's order.

    Only those of the interface `ifname` inside a sandbox count. One that names no interface is the sandbox's: `interface`
    is left out by plugins that configure just one. What cannot be read, or reaches nobody, is passed over.
    """
    found: list[Address] = []
    for assigned in result.ips:
        address = _usable(assigned.address)
        if address is not None and address not in found and _is_of_sandbox(result, assigned, ifname):
            found.append(address)
    return tuple(sorted(found, key=lambda address: address.version))


def _is_of_sandbox(result: Result, assigned: AssignedAddress, ifname: str) -> bool:
    if assigned.interface is None:
        return True
    if not 0 <= assigned.interface < len(result.interfaces):
        return False
    interface = result.interfaces[assigned.interface]
    return bool(interface.sandbox) and interface.name == ifname


def _usable(text: str) -> Address | None:
    try:
        address = ip_interface(text).ip
    except ValueError:
        return None
    unusable = address.is_unspecified or address.is_link_local or address.is_loopback or address.is_multicast
    return None if unusable else address
