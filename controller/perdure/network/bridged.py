"""What the node's firewall and sweeps must know of a network: its bridge, its subnets, where its addresses are kept.

Read from the first plugin of its configuration; None for a network whose traffic passes no bridge of this node.
Source: the reference plugins' own documents, `bridge` and `host-local`.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import msgspec

from perdure.network.cni.configuration import Network
from perdure.network.rules import Subnet

DEFAULT_BRIDGE = "cni0"
DEFAULT_DATA_DIR = "/var/lib/cni/networks"


class _Range(msgspec.Struct, frozen=True):
    subnet: str = ""


class _Ipam(msgspec.Struct, frozen=True, rename="camel"):
    type: str = ""
    subnet: str = ""
    ranges: tuple[tuple[_Range, ...], ...] = ()
    data_dir: str = DEFAULT_DATA_DIR


class _Plugin(msgspec.Struct, frozen=True, rename="camel"):
    type: str = ""
    bridge: str = DEFAULT_BRIDGE
    is_gateway: bool = False
    is_default_gateway: bool = False
    vlan: object = 0
    vlan_trunk: object = None
    ipam: _Ipam = _Ipam()


@dataclass(frozen=True, slots=True)
class Bridged:
    """`addresses`: the folder with one file for each address that is given out; `is_gateway`: the bridge has an address of
    each subnet that is in use."""

    network: str
    bridge: str
    subnets: tuple[Subnet, ...]
    addresses: Path
    is_gateway: bool = False


def bridged(network: Network) -> Bridged | None:
    """Raises `ValueError` for a bridge or subnets that are none, and for a bridge with VLANs: what is routed comes from a
    link beside the bridge then, as `cni0.100` (plugins/main/bridge, ensureVlanInterface), and not from the bridge."""
    try:
        plugin = msgspec.json.decode(network.plugins[0].document, type=_Plugin)
    except msgspec.ValidationError as error:
        raise ValueError(f"its first plugin is not understood: {error}") from error
    if plugin.type != "bridge" or plugin.ipam.type != "host-local":
        return None
    if plugin.vlan or plugin.vlan_trunk:
        raise ValueError(
            f"bridge {plugin.bridge} has vlan or vlanTrunk, whose traffic the firewall does not see: take them out, "
            "runtimes are kept apart without them"
        )
    ipam = plugin.ipam
    given = [ipam.subnet, *(found.subnet for group in ipam.ranges for found in group)]
    subnets: tuple[Subnet, ...] = tuple(dict.fromkeys(ip_network(subnet, strict=False) for subnet in given if subnet))
    addresses = Path(ipam.data_dir or DEFAULT_DATA_DIR) / network.name
    is_gateway = plugin.is_gateway or plugin.is_default_gateway
    return Bridged(network.name, plugin.bridge, subnets, addresses, is_gateway)
