"""Who may reach whom: the attachments of this node as members of the firewall of their bridge, policies as pairs of them.

Called by `cni_sandbox` with each runtime that comes and goes, and by `upkeep` from time to time. A network that is not a
bridge with addresses from `host-local` has no firewall of ours: its own plugins decide who may talk.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_network
from itertools import product

import structlog

from perdure.api.conditions import Reason
from perdure.api.names import InstallationId, Kind, Uid
from perdure.network.attachments import Attached, Attachments
from perdure.network.bridged import Bridged, bridged
from perdure.network.cni.configuration import Network
from perdure.network.firewall import Firewall
from perdure.network.rules import (
    METADATA,
    Address,
    Allowed,
    Member,
    NetworkRules,
    NodePort,
    Subnet,
    beyond,
    merged,
)
from perdure.network.tables import Tables
from perdure.reconcile.ports.errors import SandboxFailed

log = structlog.get_logger(__name__)

_Called = tuple[str, Kind | None, str | None]
"""Namespace, kind and name of a runtime as a policy says them; None: any."""


def resolver_is_here(resolv_conf: str) -> bool:
    """Whether a name server of the node's resolv.conf is an address of the node that its runtimes can reach."""
    return any(not address.is_loopback and _is_ours(address) for address in _name_servers(resolv_conf))


def resolvers_in_metadata(resolv_conf: str) -> tuple[Address, ...]:
    """The name servers of the node's resolv.conf at addresses that are closed to runtimes, as clouds answer there for names
    and for metadata."""
    found = {one for one in _name_servers(resolv_conf) if any(one in subnet for subnet in METADATA)}
    return tuple(sorted(found, key=lambda one: (one.version, int(one))))


def _name_servers(resolv_conf: str) -> Iterator[Address]:
    for line in resolv_conf.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            yield ip_address(words[1].partition("%")[0])
        except ValueError:
            continue


def _is_ours(address: Address) -> bool:
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
    """One per agent: a firewall for each bridge that somebody is on, or that the node's configuration names.

    What an attachment was made with counts, not what is configured now: a changed configuration takes nothing from those
    who run. Nothing passes from one bridge to another, whatever policies say: no set of a firewall holds both ends.
    """

    def __init__(
        self,
        installation: InstallationId,
        attachments: Attachments,
        open_ports: frozenset[NodePort] = frozenset(),
        tables: Tables | None = None,
        resolvers: tuple[Address, ...] = (),
    ) -> None:
        self._open_ports = open_ports
        self._resolvers = resolvers
        self._installation = installation
        self._attachments = attachments
        self._tables = tables if tables is not None else Tables(installation)
        self._present: Bridged | None = None
        self._firewalls: dict[str, Firewall] = {}
        """By bridge."""
        self._here: dict[Uid, Attached] = {}
        self._begun = False
        self._arranged = False
        """Whether the firewalls are those that are wanted. What failed on the way is done by the next call."""
        self._turn = asyncio.Lock()

    async def use(self, network: Network) -> None:
        """Whoever is admitted next may be on `network`: it has a firewall from now on. Raises `SandboxFailed`."""
        try:
            rules_of(self._installation, network, self._open_ports)
            there = bridged(network)
        except ValueError as error:
            raise SandboxFailed(
                f"the firewall cannot be made for network {network.name}: {error}; correct its configuration",
                reason=Reason.CNI_CONFIGURATION_INVALID,
                of_node=True,
            ) from error
        async with self._turn:
            if self._arranged and there == self._present:
                return
            if there is None:
                log.warning("network_without_isolation", network=network.name, why="it is no bridge with host-local")
            self._present = there
            await self._arrange()

    async def admit(self, attached: Attached) -> None:
        """Before the runtime starts, and when its policy changed. Whoever had its port or one of its addresses before has
        lost it, as one whose start failed: a map with two verdicts for one address is refused. Raises `SandboxFailed`."""
        uid = attached.ref.uid
        member = _protected(attached) if attached.bridge else None
        async with self._turn:
            self._begin()
            former = self._here.pop(uid, None)
            if former is not None and former.bridge != attached.bridge:
                await self._leave(former)
            if member is None:
                return
            for other in [other for other in self._here.values() if _is_displaced(other, attached)]:
                del self._here[other.ref.uid]
            self._here[uid] = attached
            if not self._arranged or attached.bridge not in self._firewalls:
                await self._arrange()
            await self._firewalls[attached.bridge].admit(member)
            await self._allow()

    async def expel(self, uid: Uid) -> None:
        """After the runtime has stopped, before its address may be another's. Raises `SandboxFailed`."""
        async with self._turn:
            self._begin()
            leaving = self._here.pop(uid, None)
            if leaving is not None:
                await self._leave(leaving)

    async def ensure(self) -> tuple[str, ...]:
        """Put back what somebody took away; what that was. One that fails keeps no other from it. Raises `SandboxFailed`."""
        async with self._turn:
            self._begin()
            if not self._arranged:
                await self._arrange()
            repaired: list[str] = []
            failures: list[SandboxFailed] = []
            for firewall in self._firewalls.values():
                try:
                    repaired += await firewall.ensure()
                except SandboxFailed as error:
                    failures.append(error)
            if failures:
                raise failures[0]
            return tuple(repaired)

    def _begin(self) -> None:
        """With who is on record. Whoever has no port on a bridge of ours cannot be protected by it."""
        if not self._begun:
            self._begun = True
            self._here = {one.ref.uid: one for one in self._attachments.all() if one.bridge and one.port and one.mac}

    async def _leave(self, leaving: Attached) -> None:
        """The last one of a bridge that is not configured any more takes its firewall along."""
        firewall = self._firewalls.get(leaving.bridge)
        if firewall is not None:
            await firewall.expel(leaving.ref.uid)
            await self._allow()
        if leaving.bridge not in self._wanted():
            await self._arrange()

    async def _allow(self) -> None:
        pairs = allowed(self._here.values())
        for firewall in self._firewalls.values():
            await firewall.allow(pairs)

    async def _arrange(self) -> None:
        """Exactly the firewalls that are wanted, those of earlier agents included. One transaction for each that changes;
        one that fails keeps no other from it."""
        self._begin()
        self._arranged = False
        wanted = self._wanted()
        failures: list[SandboxFailed] = []
        for bridge in self._firewalls.keys() - wanted.keys():
            del self._firewalls[bridge]
        for bridge, rules in wanted.items():
            known = self._firewalls.get(bridge)
            if known is not None and known.rules == rules:
                continue
            firewall = self._tables.firewall(rules)
            members = [_member(one) for one in self._here.values() if one.bridge == bridge]
            try:
                await firewall.restore(members, allowed(self._here.values()))
            except SandboxFailed as error:
                failures.append(error)
            else:
                self._firewalls[bridge] = firewall
        await self._tables.keep({rules.table for rules in wanted.values()})
        if failures:
            raise failures[0]
        self._arranged = True

    def _wanted(self) -> dict[str, NetworkRules]:
        """By bridge: the subnets of all who are on it, and of the present configuration."""
        subnets: dict[str, set[Subnet]] = {}
        names: dict[str, set[str]] = {}
        if self._present is not None:
            subnets[self._present.bridge] = set(self._present.subnets)
            names[self._present.bridge] = {self._present.network}
        for one in self._here.values():
            subnets.setdefault(one.bridge, set()).update(ip_network(subnet) for subnet in one.subnets)
            names.setdefault(one.bridge, set()).add(one.network)
        return {
            bridge: NetworkRules(
                self._installation,
                ", ".join(sorted(names[bridge])),
                bridge,
                merged(own),
                self._open_ports,
                beyond(own, {subnet for other, theirs in subnets.items() if other != bridge for subnet in theirs}),
                self._resolvers,
            )
            for bridge, own in subnets.items()
        }


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


def _is_displaced(other: Attached, newcomer: Attached) -> bool:
    return other.bridge == newcomer.bridge and (
        other.port == newcomer.port or not set(other.addresses).isdisjoint(newcomer.addresses)
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
