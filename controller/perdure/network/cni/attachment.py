"""What is attached to a network: one interface in one network namespace, and what the runtime asks of the plugins for it.

Made by the network's provider from a runtime's spec. Members of capabilities: containernetworking/cni `CONVENTIONS.md`.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from perdure.network.cni.configuration import VALID_NAME
from perdure.network.cni.documents import Document, decode, raw
from perdure.network.cni.errors import InvalidAttachment

MAX_INTERFACE_NAME = 15
"""IFNAMSIZ of the kernel, without the final zero."""


class PortMapping(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """`host_ip` empty: on every address of the node."""

    host_port: int
    container_port: int
    protocol: str
    """`tcp` or `udp`."""
    host_ip: str = msgspec.field(default="", name="hostIP")


class Bandwidth(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Rates in bits per second, bursts in bits; seen from the sandbox. A rate without its burst is refused by the plugin."""

    ingress_rate: int = 0
    ingress_burst: int = 0
    egress_rate: int = 0
    egress_burst: int = 0


class CapabilityDns(msgspec.Struct, frozen=True):
    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What is asked of whichever plugin offers it; what no plugin offers is not done (`Network.offers`)."""

    port_mappings: tuple[PortMapping, ...] = ()
    bandwidth: Bandwidth | None = None
    dns: CapabilityDns | None = None
    ips: tuple[str, ...] = ()
    """Addresses with prefix length."""
    mac: str | None = None

    def document(self) -> Document:
        """As `runtimeConfig` names them; what is not asked for is left out."""
        asked: Document = {}
        if self.port_mappings:
            asked["portMappings"] = raw(self.port_mappings)
        if self.bandwidth is not None:
            asked["bandwidth"] = raw(self.bandwidth)
        if self.dns is not None:
            asked["dns"] = raw(self.dns)
        if self.ips:
            asked["ips"] = raw(self.ips)
        if self.mac is not None:
            asked["mac"] = raw(self.mac)
        return asked


def asked_either_way(former: Document, wanted: Document) -> Document:
    """What a DEL is asked with while it is not sure which of the two is there: the ports of both, else what is wanted."""
    mappings = [*port_mappings(former), *port_mappings(wanted)]
    ports: Document = {"portMappings": raw(tuple(dict.fromkeys(mappings)))} if mappings else {}
    return {**former, **wanted, **ports}


def port_mappings(asked: Document) -> tuple[PortMapping, ...]:
    """Of a document of capabilities. Raises `Malformed`."""
    given = asked.get("portMappings")
    return () if given is None else decode(bytes(given), tuple[PortMapping, ...])


@dataclass(frozen=True, slots=True)
class Attachment:
    """`netns` is the path of the network namespace; empty where it is gone, which DEL alone allows.

    Use one `container_id` per network namespace: a DEL with another id takes the interface of the same name away too.
    """

    container_id: str
    netns: str
    ifname: str = "eth0"
    capabilities: Capabilities = Capabilities()
    cni_args: tuple[tuple[str, str], ...] = ()

    def validate(self) -> None:
        """Raises `InvalidAttachment` for what the specification (section 2, parameters) does not allow."""
        if VALID_NAME.fullmatch(self.container_id) is None:
            raise InvalidAttachment(
                f"container id {self.container_id!r} must be letters, digits, '_', '.' and '-' (not first)"
            )
        if not is_interface_name(self.ifname):
            raise InvalidAttachment(
                f"interface name {self.ifname!r} of {self.container_id} must have 1 to {MAX_INTERFACE_NAME} characters, "
                "none of them '/', ':' or a space"
            )
        if "\0" in self.netns or any(set(";=\0") & set(text) for pair in self.cni_args for text in pair):
            raise InvalidAttachment(
                f"the network namespace and arguments of {self.container_id} must not hold NUL, and arguments not ';' or '='"
            )


def is_interface_name(name: str) -> bool:
    """The kernel's rule, `dev_valid_name` in net/core/dev.c."""
    if name in ("", ".", "..") or len(name.encode()) > MAX_INTERFACE_NAME:
        return False
    return not any(letter in "/:\0" or letter.isspace() for letter in name)
