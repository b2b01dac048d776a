"""Looks after the networks of running runtimes from time to time: rules that somebody flushed, interfaces that somebody took,
addresses and rules that nobody has any more. Spawned by the composition root.

A healthy runtime costs no plugin call: one listing of rules and one walk through the namespaces serve all of them, and
only what looks wrong is asked of the plugins' CHECK. Mending is the planner's: here a runtime is only said to be damaged.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import structlog

from perdure.api.conditions import Reason
from perdure.api.names import Uid
from perdure.network import inspection, netns
from perdure.network.attachments import Attached, Attachments, Damage
from perdure.network.cni.attachment import Attachment
from perdure.network.cni.client import CniClient
from perdure.network.cni.configuration import Network
from perdure.network.cni.error_classes import Action, ErrorClass
from perdure.network.cni.errors import CniError
from perdure.network.cni.retries import classify
from perdure.network.cni_sandbox import IFNAME, CniSandbox
from perdure.network.command import Launcher, run
from perdure.network.isolation import Isolation
from perdure.network.obstacles import Obstacles
from perdure.reconcile.ports.errors import SandboxFailed

LOOK_SECONDS = 30.0
SWEEP_EVERY = 4
"""A sweep with every so many looks: what one finds leaked the next one removes, if it still is."""

_ABOUT_RULES = frozenset({Action.REPAIR_RULES, Action.IGNORE})

log = structlog.get_logger(__name__)


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

    async def run(self) -> None:
        """Until cancelled. What cannot be looked at now is looked at next time."""
        looks, said = 0, ""
        while True:
            try:
                if self.attachments.uids():
                    await self.look()  # at what runs, whatever has become of the configuration
                network = await self.sandbox.network()
                if looks % SWEEP_EVERY == 0:
                    await self.sweep(network)
                looks += 1
                said = ""
            except SandboxFailed as error:
                # A node without a network is none that is broken; and nothing is said twice in a row.
                if error.reason is not Reason.NO_CNI_CONFIGURATION and str(error) != said:
                    log.warning("network_not_looked_after", error=str(error))
                said = str(error)
            await asyncio.sleep(LOOK_SECONDS * random.uniform(0.8, 1.2))

    async def look(self) -> None:
        """Firewalls, interfaces, port rules, of all that is attached, by whatever configuration. Raises `SandboxFailed`."""
        repaired = await self.isolation.ensure()
        if repaired:
            log.warning("firewall_was_changed", repaired=repaired)
        here = {one.ref.uid: one for one in self.attachments.all() if one.addresses}
        expected = [(uid, self.names / uid, IFNAME, one.addresses[0]) for uid, one in here.items()]
        for uid, why in (await asyncio.to_thread(inspection.without_address, expected)).items():
            self._damaged(uid, Damage(why, interface=True))
        for uid in await self._without_rules([one for one in here.values() if one.ports]):
            damage = await self._checked(here[uid])
            if damage is not None:
                self._damaged(uid, damage)

    def _damaged(self, uid: Uid, damage: Damage) -> None:
        if self.attachments.damages.get(uid) == damage:
            return
        log.warning("network_damaged", uid=uid, why=damage.text)
        self.attachments.damages[uid] = damage
        self.wake(uid)

    async def _without_rules(self, published: list[Attached]) -> list[Uid]:
        """Whose ports no NAT rule names, in a family that it has an address of. The plugins write the container's id into a
        comment of each of theirs."""
        missing: dict[Uid, None] = {}
        for program, version in (("iptables-save", 4), ("ip6tables-save", 6)):
            asked = [one for one in published if version in _versions(one)]
            if asked:
                rules = await run("reading the port rules", program, "-t", "nat", launcher=self.launcher)
                missing |= {one.ref.uid: None for one in asked if one.ref.uid not in rules}
        return list(missing)

    async def sweep(self, network: Network) -> None:
        """Take away what is left of runtimes that are on no record, once a second look confirms it and nothing lives in
        it: a record may be lost while its runtime runs. Raises `SandboxFailed`."""
        strangers = frozenset(await self.sandbox.inventory()) - self.known()
        for uid in strangers & self._strangers:
            if await self._is_inhabited(uid):
                continue
            log.warning("network_of_nobody", uid=uid, network=network.name)
            await self.sandbox.discard(uid)
        self._strangers = strangers
        await self.obstacles.sweep(network)

    async def _is_inhabited(self, uid: Uid) -> bool:
        try:
            return await asyncio.to_thread(netns.is_inhabited, self.names / uid)
        except OSError as error:
            raise SandboxFailed(f"cannot see whether anything lives in {self.names / uid}: {error}") from error

    async def _checked(self, attached: Attached) -> Damage | None:
        """What the plugins say of one that looks damaged: they alone know how their rules look."""
        attachment = Attachment(attached.ref.uid, str(self.names / attached.ref.uid), IFNAME)
        try:
            await self.client.check(attached.network, attachment)
        except CniError as error:
            verdict = classify(error)
            if verdict.action is Action.IGNORE and not (
                verdict.kind is ErrorClass.CHECK_UNRELIABLE and 6 in _versions(attached)
            ):
                return None  # what is missed is of a family that it has no address of
            return Damage(f"[{verdict.kind.value}] {error}", interface=verdict.action not in _ABOUT_RULES)
        return None


def _versions(attached: Attached) -> frozenset[int]:
    """Of IP, that it has addresses of."""
    return frozenset(ip_address(address).version for address in attached.addresses)
