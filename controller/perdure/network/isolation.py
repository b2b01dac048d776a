"""Who may reach whom: the attachments of this node as members of the firewall of their network, policies as pairs of them.

Called by `cni_sandbox` with each runtime that comes and goes, and by `upkeep` from time to time. A network that is not a
bridge with addresses from `host-local` has no firewall of ours: its own plugins decide who may talk.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import product

import structlog

from perdure.api.conditions import Reason
from perdure.api.names import InstallationId, Kind, Uid
from perdure.network.attachments import Attached, Attachments
from perdure.network.bridged import bridged
from perdure.network.cni.configuration import Network
from perdure.network.firewall import Firewall
from perdure.network.rules import Allowed, Member, NetworkRules, NodePort, Transport
from perdure.reconcile.ports.errors import SandboxFailed

log = structlog.get_logger(__name__)

_Called = tuple[str, Kind | None, str | None]
"""Namespace, kind and name of a runtime as a policy says them; None: any."""
RESOLVER = frozenset({NodePort(Transport.UDP, 53), NodePort(Transport.TCP, 53)})
"""Of the node, opened where its runtimes are told to ask the node itself for names."""


def resolver_is_here(resolv_conf: str) -> bool:
    """Whether a name server of the node's resolv.conf is an address of the node that its runtimes can reach."""
    for line in resolv_conf.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = ip_address(words[1].partition("%")[0])
        except ValueError:
            continue
        if not address.is_loopback and _is_ours(address):
            return True
    return False


def _is_ours(address: IPv4Address | IPv6Address) -> bool:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True


def rules_of(installation: InstallationId, network: Network, open_ports: frozenset[NodePort]) -> NetworkRules | None:
    """What the firewall is made from; None for a network whose traffic does not pass a bridge of this node.
    Raises `ValueError` for subnets or names that are none."""
    there = bridged(network)
    if there is None:
        return None
    return NetworkRules(installation, there.network, there.bridge, there.subnets, open_ports)


class Isolation:
    """One per agent. `firewall` makes the firewall of a network from its rules."""

    def __init__(
        self,
        installation: InstallationId,
        attachments: Attachments,
        open_ports: frozenset[NodePort] = frozenset(),
        firewall: Callable[[NetworkRules], Firewall] = Firewall,
    ) -> None:
        self._open_ports = open_ports
        self._installation = installation
        self._attachments = attachments
        self._make = firewall
        self._firewall: Firewall | None = None
        self._here: dict[Uid, Attached] = {}
        self._turn = asyncio.Lock()

    async def use(self, network: Network) -> None:
        """From now on the firewall of `network`, with everybody on it who is on record. Raises `SandboxFailed`."""
        try:
            rules = rules_of(self._installation, network, self._open_ports)
        except ValueError as error:
            raise SandboxFailed(
                f"the firewall cannot be made for network {network.name}: {error}; correct its configuration",
                reason=Reason.CNI_CONFIGURATION_INVALID,
                of_node=True,
            ) from error
        async with self._turn:
            if rules == (self._firewall.rules if self._firewall is not None else None):
                return
            if self._firewall is not None and not self._here:
                # Nobody is on the old network any more. As long as somebody is, its rules go on to hold.
                await self._firewall.remove()
            if rules is None:
                log.warning("network_without_isolation", network=network.name, why="it is no bridge with host-local")
                self._firewall = None
                return
            # Whoever was attached when the network of this name was none of a bridge has no port that could be protected.
            known = (one for one in self._attachments.all() if one.network == network.name and one.port and one.mac)
            self._here = {one.ref.uid: one for one in known}
            firewall = self._make(rules)
            await firewall.restore(map(_member, self._here.values()), allowed(self._here.values()))
            self._firewall = firewall

    async def admit(self, attached: Attached) -> None:
        """Before the runtime starts, and when its policy changed. Raises `SandboxFailed`."""
        async with self._turn:
            self._here[attached.ref.uid] = attached
            if self._firewall is not None:
                await self._firewall.admit(_protected(attached))
                await self._firewall.allow(allowed(self._here.values()))

    async def expel(self, uid: Uid) -> None:
        """After the runtime has stopped, before its address may be another's. Raises `SandboxFailed`."""
        async with self._turn:
            self._here.pop(uid, None)
            if self._firewall is not None:
                await self._firewall.expel(uid)
                await self._firewall.allow(allowed(self._here.values()))

    async def ensure(self) -> tuple[str, ...]:
        """Put back what somebody took away; what that was. Raises `SandboxFailed`."""
        return await self._firewall.ensure() if self._firewall is not None else ()


def allowed(here: Iterable[Attached]) -> frozenset[Allowed]:
    """The pairs that policies open; runtimes of one namespace need none. Costs what there are pairs, not what is listed."""
    everybody = tuple(here)
    sources: dict[_Called, list[Uid]] = {}
    for one in everybody:
        for kind, name in product((None, one.ref.kind), (None, one.ref.name)):
            sources.setdefault((one.ref.namespace, kind, name), []).append(one.ref.uid)
    return frozenset(
        Allowed(source, target.ref.uid)
        for target in everybody
        for peer in frozenset(target.policy.allow_from)
        for source in sources.get((peer.namespace or target.ref.namespace, peer.kind, peer.name), ())
        if source != target.ref.uid
    )


def _protected(attached: Attached) -> Member:
    """Raises `SandboxFailed` for what no rule could name: it must not run beside others unprotected."""
    try:
        return _member(attached)
    except ValueError as error:
        raise SandboxFailed(
            f"{attached.ref} cannot be protected on network {attached.network}: {error}; its bridge plugin must tell the "
            "links that it makes",
            reason=Reason.CNI_CONFIGURATION_INVALID,
        ) from error


def _member(attached: Attached) -> Member:
    return Member(
        uid=attached.ref.uid,
        namespace=attached.ref.namespace_uid,
        port=attached.port,
        mac=attached.mac,
        addresses=tuple(ip_address(address) for address in attached.addresses),
    )
