"""The node's bridge: what it is, its ports, and the one repair that is safe while runtimes hang on it. Called by sandboxes.

The bridge plugin of CNI makes the bridge; a bridge that has ports is never deleted here, because every runtime on it
would lose its network (and connections) with it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import msgspec

from perdure.network.command import CommandFailed, Launcher, run
from perdure.reconcile.ports.errors import SandboxFailed


class _LinkInfo(msgspec.Struct, frozen=True):
    info_kind: str = ""


class _Address(msgspec.Struct, frozen=True):
    local: str = ""


class _Link(msgspec.Struct, frozen=True):
    """A part of what `ip -json -details address` prints."""

    ifname: str
    address: str = ""
    master: str = ""
    linkinfo: _LinkInfo = _LinkInfo()
    link_netnsid: int | None = None
    """Number of the peer's network namespace; None for a pair within this one."""
    flags: tuple[str, ...] = ()
    addr_info: tuple[_Address, ...] = ()

    @property
    def is_up(self) -> bool:
        return "UP" in self.flags


@dataclass(frozen=True, slots=True)
class Port:
    """A link that is attached to a bridge."""

    name: str
    kind: str
    """`veth`, `vlan`…; empty for a device."""
    peer_elsewhere: bool
    """Whether its other end is in another network namespace. The kernel removes the link with that namespace."""
    is_up: bool = True


@dataclass(frozen=True, slots=True)
class Bridge:
    name: str
    mac: str
    ports: tuple[Port, ...]
    is_up: bool = True
    addresses: tuple[str, ...] = ()

    @property
    def has_a_usable_mac(self) -> bool:
        """Neither all zero nor a group address (IEEE 802: the lowest bit of the first octet)."""
        octets = self.mac.split(":")
        return len(octets) == 6 and any(int(octet, 16) for octet in octets) and not int(octets[0], 16) & 1


class NotABridge(SandboxFailed):
    """A link of another kind has the bridge's name: the node's configuration is to be changed, or the link removed."""


async def look(name: str, launcher: Launcher = ()) -> Bridge | None:
    """The bridge of that name; None where there is no such link. Raises `NotABridge` and `CommandFailed`."""
    link = await _link(name, launcher)
    if link is None:
        return None
    if link.linkinfo.info_kind != "bridge":
        raise NotABridge(
            f"looking at bridge {name}: the link of this name is of kind {link.linkinfo.info_kind or 'device'}; name "
            f"another bridge in the node's CNI configuration, or remove the link"
        )
    ports = await _links(f"listing the ports of bridge {name}", launcher, "master", name)
    return Bridge(
        name,
        link.address,
        tuple(Port(port.ifname, port.linkinfo.info_kind, port.link_netnsid is not None, port.is_up) for port in ports),
        link.is_up,
        tuple(address.local for address in link.addr_info if address.local),
    )


async def repair_mac(found: Bridge, launcher: Launcher = ()) -> str | None:
    """Give the bridge a MAC of its own where it has an unusable one; returns it. Connections through it live on.

    An address that is set stays when ports come and go; one that the kernel chose is that of a port, and changes with
    them (net/bridge/br_stp_if.c, br_stp_recalculate_bridge_id).
    """
    if found.has_a_usable_mac:
        return None
    mac = local_mac(secrets.token_bytes(6))
    await run(
        f"repairing the MAC of bridge {found.name}", "ip", "link", "set", found.name, "address", mac, launcher=launcher
    )
    return mac


def local_mac(entropy: bytes) -> str:
    """A locally administered unicast MAC of six octets."""
    return bytes([entropy[0] & 0xFC | 2, *entropy[1:6]]).hex(":")


async def _link(name: str, launcher: Launcher) -> _Link | None:
    try:
        (link,) = await _links(f"looking at bridge {name}", launcher, "dev", name)
    except CommandFailed as error:
        if error.code is not None and error.says("does not exist"):
            return None
        raise
    return link


async def _links(doing: str, launcher: Launcher, *which: str) -> list[_Link]:
    printed = await run(doing, "ip", "-json", "-details", "address", "show", *which, launcher=launcher)
    try:
        return msgspec.json.decode(printed or "[]", type=list[_Link])
    except msgspec.DecodeError as error:
        raise SandboxFailed(
            f"{doing}: ip printed what is not its JSON: {error}; iproute2 4.14 or newer is needed"
        ) from error
