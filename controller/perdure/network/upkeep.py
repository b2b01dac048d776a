"""Looks after the networks of running runtimes from time to time: rules that somebody flushed, interfaces that somebody took,
addresses and rules that nobody has any more. Spawned by the composition root.

A healthy runtime costs no plugin call: one listing of rules and one walk through the namespaces serve all of them, and
only what looks wrong is asked of the plugins' CHECK. Mending is the planner's: here a runtime is only said to be damaged.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import structlog

from perdure.api.conditions import Reason
from perdure.api.names import Uid
from perdure.network import bridge, inspection, netns
from perdure.network.attachments import Attached, Attachments, Damage
from perdure.network.bridge import Bridge
from perdure.network.cni.attachment import Attachment
from perdure.network.cni.cache import Record
from perdure.network.cni.client import CniClient
from perdure.network.cni.configuration import Network, parse
from perdure.network.cni.error_classes import ErrorClass
from perdure.network.cni.errors import CniError, ConfigurationError, NotCached
from perdure.network.cni.retries import classify
from perdure.network.cni_sandbox import IFNAME, CniSandbox
from perdure.network.command import Launcher, run
from perdure.network.isolation import Isolation
from perdure.network.obstacles import Obstacles, bridge_of
from perdure.reconcile.ports.errors import SandboxFailed

LOOK_SECONDS = 30.0
SWEEP_EVERY = 4
"""A sweep with every so many looks: what one finds leaked the next one removes, if it still is."""
ASK_AGAIN_LOOKS = 10
"""From one CHECK that confirms rules which are not in iptables, to the next. It costs ten milliseconds and more for each."""

_OF_THE_INTERFACE = frozenset({ErrorClass.ATTACHMENT_DAMAGED, ErrorClass.NETNS_LOST, ErrorClass.CONTAINER_UNKNOWN})
_LED_IN = re.compile(r"^-A PREROUTING .*-j CNI-HOSTPORT-DNAT", re.MULTILINE)
_LED_ON = re.compile(r"^-A FORWARD .*-j CNI-FORWARD", re.MULTILINE)
"""Rules into the chains of portmap and of the firewall plugin, which those plugins' CHECK does not look for."""
_LEADING = re.compile(r"^-A CNI-HOSTPORT-DNAT .*$", re.MULTILINE)
"""portmap's rules, each into the chain of a container."""

_Where = tuple[str, str]
"""A program that lists rules, and a table."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Configured:
    """What a look has to know of the configuration that somebody was attached by."""

    accepts: bool = False
    """The firewall plugin has rules for each address."""
    has_gateway: bool = False
    """The bridge has an address of each subnet that is in use."""


_UNREADABLE = _Configured()


@dataclass(frozen=True, slots=True)
class _Here:
    attached: Attached
    configured: _Configured
    unmended: Damage | None
    """What it was told before this look. It may be stopped, and so mend nothing for long: what everybody has lost is told to
    the next one, one more with each look."""

    @property
    def uid(self) -> Uid:
        return self.attached.ref.uid


@dataclass(slots=True)
class Upkeep:
    """`names`: the folder of network namespaces; `wake`: have the loop look at a runtime; `known`: uids that may have a
    network here, from the journal."""

    sandbox: CniSandbox
    client: CniClient
    attachments: Attachments
    isolation: Isolation
    obstacles: Obstacles
    names: Path
    wake: Callable[[Uid], None]
    known: Callable[[], frozenset[Uid]]
    launcher: Launcher = ()
    _strangers: frozenset[Uid] = frozenset()
    _looks: int = 0
    _confirmed: dict[tuple[Uid, _Where], tuple[Attached, int]] = field(default_factory=dict)
    """Who has rules, but elsewhere, and the look that asks again."""

    async def run(self) -> None:
        """Until cancelled. What cannot be looked at now is looked at next time."""
        looks, said = 0, frozenset[str]()
        while True:
            failures = await self.go_round(sweep=looks % SWEEP_EVERY == 0)
            for text in sorted(failures - said):
                log.warning("network_not_looked_after", error=text)
            looks, said = looks + 1, failures
            await asyncio.sleep(LOOK_SECONDS * random.uniform(0.8, 1.2))

    async def go_round(self, *, sweep: bool) -> frozenset[str]:
        """One look at what runs, whatever has become of the configuration, and one sweep if asked for: what could not be
        done."""
        failures = await self.look() if self.attachments.uids() else []
        try:
            network = await self.sandbox.network()
            failures += await self.sweep(network) if sweep else []
        except SandboxFailed as error:
            if error.reason is not Reason.NO_CNI_CONFIGURATION:  # a node without a network is none that is broken
                failures.append(error)
        return frozenset(map(str, failures))

    async def look(self) -> list[SandboxFailed]:
        """Firewalls, interfaces, rules of plugins, of all that is attached, by whatever configuration, each whatever became
        of the others: what could not be looked at."""
        self._looks += 1
        failures = await _all_of(self._look_at_firewalls())
        try:
            here = await self._attached_here()
        except SandboxFailed as error:
            return [*failures, error]
        return failures + await _all_of(self._look_at_interfaces(here), self._look_at_rules(here))

    async def _look_at_firewalls(self) -> None:
        repaired = await self.isolation.ensure()
        if repaired:
            log.warning("firewall_was_changed", repaired=repaired)

    async def _attached_here(self) -> list[_Here]:
        """With the configurations of their ADDs, which are few."""
        try:
            records = await self.client.cached()
        except CniError as error:
            raise SandboxFailed(f"cannot see how runtimes were attached: {error}") from error
        read: dict[bytes, _Configured] = {}
        made: dict[tuple[str, str], _Configured] = {}
        for record in records:
            if isinstance(record, Record):
                if record.network not in read:
                    read[record.network] = _configured(record)
                made[record.network_name, record.container_id] = read[record.network]
        ids, damages = self.sandbox.settings.ids, self.attachments.damages
        return [
            _Here(one, made.get((one.network, ids.id(one.ref.uid)), _UNREADABLE), damages.get(one.ref.uid))
            for one in self.attachments.all()
            if one.addresses
        ]

    async def _look_at_interfaces(self, here: Sequence[_Here]) -> None:
        expected = [
            inspection.Expected(it.uid, self.names / it.uid, IFNAME, it.attached.addresses, it.attached.ways_out)
            for it in here
        ]
        wrong = await asyncio.to_thread(inspection.damaged, expected)
        failures: list[SandboxFailed] = []
        for name in sorted({it.attached.bridge for it in here if it.attached.bridge}):
            on_it = [it for it in here if it.attached.bridge == name]
            try:
                found = await bridge.look(name, self.launcher)
            except SandboxFailed as error:
                failures.append(error)
            else:
                wrong = {**_off_the_bridge(name, found, on_it), **wrong}
        for it in here:
            if it.uid in wrong:
                self._damaged(it.attached, Damage(wrong[it.uid], interface=True))
        if failures:
            raise failures[0]

    async def _look_at_rules(self, here: Sequence[_Here]) -> None:
        """Of a rule that leads to those of all containers one runtime is told: its repair brings it back for everybody."""
        attached = self.attachments.uids()
        self._confirmed = {key: what for key, what in self._confirmed.items() if key[0] in attached}
        unmended = {it.uid for it in here if it.unmended is not None}
        for program, version in (("iptables-save", 4), ("ip6tables-save", 6)):
            present = [it for it in here if version in _versions(it.attached)]
            for table, asked, having, hook in (
                ("nat", [it.attached for it in present if it.attached.ports], _led_into, _LED_IN),
                (
                    "filter",
                    [it.attached for it in present if it.configured.accepts],
                    partial(_accepted, version),
                    _LED_ON,
                ),
            ):
                if not asked:
                    continue
                rules = await run(f"reading rules of table {table}", program, "-t", table, launcher=self.launcher)
                there = having(asked, rules)
                where = (program, table)
                for one in asked:
                    if one in there:
                        self._confirmed.pop((one.ref.uid, where), None)
                    elif not self._is_confirmed(one, where):
                        damage = await self._checked(one, where, rules)
                        if damage is not None:
                            self._damaged(one, damage)
                able = next((one for one in there if one.ref.uid not in unmended), None)
                if able is not None and hook.search(rules) is None:
                    why = f"table {table} has lost the rule that leads to those of containers"
                    self._damaged(able, Damage(why, interface=False))

    def _damaged(self, attached: Attached, damage: Damage) -> None:
        """Unless it was attached anew while we looked, or more than that is known already."""
        uid, known = attached.ref.uid, self.attachments.damages.get(attached.ref.uid)
        if self.attachments.get(uid) is not attached or known == damage:
            return
        if known is not None and known.interface and not damage.interface:
            return
        log.warning("network_damaged", uid=uid, why=damage.text)
        self.attachments.damages[uid] = damage
        self.wake(uid)

    async def sweep(self, network: Network) -> list[SandboxFailed]:
        """Take away what is left of runtimes that are on no record, once a second look confirms it and nothing lives in
        it: a record may be lost while its runtime runs. What could not be taken away stays for the next sweep."""
        return await _all_of(self._sweep_strangers(network), self.obstacles.sweep(network))

    async def _sweep_strangers(self, network: Network) -> None:
        strangers = frozenset(await self.sandbox.inventory()) - self.known()
        twice_seen, self._strangers = strangers & self._strangers, strangers
        failures = await _all_of(*(self._discard(uid, network) for uid in sorted(twice_seen)))
        if failures:
            raise failures[0]

    async def _discard(self, uid: Uid, network: Network) -> None:
        if not await self._is_inhabited(uid):
            log.warning("network_of_nobody", uid=uid, network=network.name)
            await self.sandbox.discard(uid)

    async def _is_inhabited(self, uid: Uid) -> bool:
        try:
            return await asyncio.to_thread(netns.is_inhabited, self.names / uid)
        except OSError as error:
            raise SandboxFailed(f"cannot see whether anything lives in {self.names / uid}: {error}") from error

    def _is_confirmed(self, attached: Attached, where: _Where) -> bool:
        """Whatever was changed since is not."""
        confirmed, asked_again = self._confirmed.get((attached.ref.uid, where), (None, 0))
        return confirmed is attached and self._looks < asked_again

    async def _checked(self, attached: Attached, where: _Where, rules: str) -> Damage | None:
        """What the plugins say of one that has nothing among these rules of iptables: they alone know how theirs look.

        Only what is surely wrong with the interface has it attached anew, for that cuts connections; a plugin that cannot
        tell is asked again next time. The firewall plugin may have its rules elsewhere, with firewalld.
        """
        uid, table = attached.ref.uid, where[1]
        attachment = Attachment(self.sandbox.settings.ids.id(uid), str(self.names / uid), IFNAME)
        in_iptables = table == "nat" or ":CNI-FORWARD " in rules
        try:
            if await self.client.check(attached.network, attachment):
                self._confirm(attached, where)
                return None
        except NotCached as error:
            return Damage(str(error), interface=False)
        except CniError as error:
            verdict = classify(error)
            missing = verdict.kind is ErrorClass.RULES_MISSING
            if verdict.kind is ErrorClass.CHECK_UNRELIABLE:
                # What it misses is of a family that there may be no address of, and plugins after it were not asked.
                missing = 6 in _versions(attached) if table == "nat" else in_iptables
                if not missing:
                    self._confirm(attached, where)
            if missing or verdict.kind in _OF_THE_INTERFACE:
                return Damage(f"[{verdict.kind.value}] {error}", interface=not missing)
            log.info("network_not_checked", uid=uid, kind=verdict.kind.value, error=str(error))
            return None
        return (
            Damage("its rules are missing, and the network allows no CHECK", interface=False) if in_iptables else None
        )

    def _confirm(self, attached: Attached, where: _Where) -> None:
        self._confirmed[attached.ref.uid, where] = (attached, self._looks + ASK_AGAIN_LOOKS)


def _versions(attached: Attached) -> frozenset[int]:
    """Of IP, that it has addresses of."""
    return frozenset(ip_address(address).version for address in attached.addresses)


def _configured(record: Record) -> _Configured:
    try:
        network = parse(record.network, f"the cached configuration of {record.container_id}")
        there = bridge_of(network)
    except (ConfigurationError, SandboxFailed) as error:
        log.info("configuration_unreadable", container_id=record.container_id, error=str(error))
        return _UNREADABLE
    return _Configured(
        accepts=any(plugin.type == "firewall" for plugin in network.plugins),
        has_gateway=there is not None and there.is_gateway,
    )


def _off_the_bridge(name: str, found: Bridge | None, here: Sequence[_Here]) -> dict[Uid, str]:
    """Whose link on the node's side leads nowhere. Of what concerns the bridge itself one runtime is told: attaching it anew
    mends the bridge, and the others keep their connections."""
    ports = {it.attached.port: it.uid for it in here if it.attached.port}
    if found is None:
        return dict.fromkeys(ports.values(), f"bridge {name} is gone")
    up = {port.name: port.is_up for port in found.ports}
    broken = {uid: f"link {port} is no port of bridge {name}" for port, uid in ports.items() if port not in up}
    broken |= {uid: f"link {port} is down" for port, uid in ports.items() if up.get(port) is False}
    wrong = "is down" if not found.is_up else _lost_as_gateway(found, here)
    told = {it.uid for it in here if it.unmended is not None and it.unmended.interface}
    able = set(ports.values()) - told
    if wrong and able and able.isdisjoint(broken):
        broken[min(able)] = f"bridge {name} {wrong}"
    return broken


def _lost_as_gateway(found: Bridge, here: Sequence[_Here]) -> str:
    """What the bridge lacks of the addresses that runtimes send to on their way out."""
    own = [ip_address(text) for text in found.addresses]
    for it in here:
        if not it.configured.has_gateway:
            continue
        for subnet in map(ip_network, it.attached.subnets):
            given = any(ip_address(text) in subnet for text in it.attached.addresses)
            if given and not any(address in subnet for address in own):
                return f"has lost its address of {subnet}"
    return ""


def _led_into(asked: Sequence[Attached], rules: str) -> list[Attached]:
    """Who has a rule of portmap's, which writes the container's id into a comment; so does the bridge plugin elsewhere."""
    leading = "\n".join(_LEADING.findall(rules))
    return [one for one in asked if one.ref.uid in leading]


def _accepted(version: int, asked: Sequence[Attached], rules: str) -> list[Attached]:
    """Who has the firewall plugin's rule for each address, written as iptables-save(8) does."""

    def rule(address: IPv4Address | IPv6Address) -> str:
        return f"-A CNI-FORWARD -s {address}/{address.max_prefixlen} -j ACCEPT"

    def own(one: Attached) -> Iterator[IPv4Address | IPv6Address]:
        return (address for address in map(ip_address, one.addresses) if address.version == version)

    return [one for one in asked if all(rule(address) in rules for address in own(one))]


async def _all_of(*parts: Coroutine[Any, Any, None]) -> list[SandboxFailed]:
    """Each, one after the other, whatever became of those before it."""
    failures = []
    for part in parts:
        try:
            await part
        except SandboxFailed as error:
            failures.append(error)
    return failures
