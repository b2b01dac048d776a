"""What runtimes that are no longer ours left on the node: found, confirmed by a second look, and removed.

Called by sandboxes from time to time, and when addresses run out. Only what bears our network's name (or is an address
of its subnets, for rules that bear no name) counts; what cannot be told is left alone and reported.

A leftover is removed when a sweep at least `patience` seconds after the first sighting still finds it, and its owner is
asked for once more right before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path

import structlog

from perdure.network import bridge, iptables, leftovers
from perdure.network.cni.cache import Cache, Damaged, Record
from perdure.network.cni.errors import CacheUnusable
from perdure.network.command import Launcher, run
from perdure.network.iptables import LeftRules
from perdure.network.rules import Subnet
from perdure.reconcile.ports.errors import SandboxFailed

log = structlog.get_logger(__name__)


class LeftoverKind(StrEnum):
    ADDRESS = "address"
    RULES = "rules"
    RESULT = "result"
    LINK = "link"


@dataclass(frozen=True, slots=True)
class Leftover:
    """One thing that an attachment left; equal as long as it is the same thing of the same owner."""

    kind: LeftoverKind
    what: str
    owner: str
    """Container id; the address where nothing else is known."""


@dataclass(frozen=True, slots=True)
class Known:
    """What attachments of this node's runtimes have, asked anew for each sweep and each removal."""

    containers: frozenset[str]
    addresses: frozenset[str]
    ports: frozenset[str]
    """Names of host side links."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where one network keeps its things."""

    network: str
    bridge: str
    subnets: tuple[Subnet, ...]
    addresses: Path
    """`<dataDir>/<network>` of host-local."""
    cache: Cache
    """What is attached, of this network and of others."""


@dataclass(slots=True)
class Swept:
    """What one sweep saw and did, for logs and metrics."""

    suspected: list[Leftover] = field(default_factory=list)
    """Seen, and not yet confirmed."""
    removed: list[Leftover] = field(default_factory=list)
    left_alone: list[Leftover] = field(default_factory=list)
    """Of an owner that nobody knows, but alive or unreadable: for a person to look at."""
    failures: list[str] = field(default_factory=list)


_Removal = Callable[[], Awaitable[bool]]
_PROGRAMS = ("iptables", "ip6tables")


class Sweeper:
    """One per network. `known` is called on the event loop and must not block."""

    def __init__(
        self,
        places: Places,
        known: Callable[[], Known],
        *,
        patience: float,
        launcher: Launcher = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._places = places
        self._known = known
        self._patience = patience
        self._launcher = launcher
        self._clock = clock
        self._sighted: dict[Leftover, float] = {}
        self._turn = asyncio.Lock()

    async def sweep(self) -> Swept:
        """One look at everything. Errors of one kind of leftover do not keep it from the others; they are returned."""
        async with self._turn:
            swept = Swept()
            seen: dict[Leftover, _Removal] = {}
            complete = True
            for find in (self._addresses, self._results, self._rules, self._links):
                try:
                    seen.update(await find(swept))
                except (OSError, ValueError, SandboxFailed, CacheUnusable) as error:
                    complete = False
                    swept.failures.append(f"{find.__name__.strip('_')}: {error}")
            now = self._clock()
            kept = {} if complete else self._sighted
            self._sighted = {**kept, **{leftover: self._sighted.get(leftover, now) for leftover in seen}}
            for leftover, removal in seen.items():
                if now - self._sighted[leftover] >= self._patience and now > self._sighted[leftover]:
                    await self._remove(leftover, removal, swept)
                else:
                    swept.suspected.append(leftover)
            return swept

    async def _remove(self, leftover: Leftover, removal: _Removal, swept: Swept) -> None:
        known = self._known()
        if leftover.owner in known.containers | known.addresses | known.ports:
            return
        try:
            gone = await removal()
        except (OSError, SandboxFailed, CacheUnusable) as error:
            swept.failures.append(f"{leftover.kind} {leftover.what} of {leftover.owner}: {error}")
            return
        del self._sighted[leftover]
        if gone:
            swept.removed.append(leftover)
            log.info(
                "leftover_removed",
                network=self._places.network,
                kind=leftover.kind,
                what=leftover.what,
                owner=leftover.owner,
            )

    async def _addresses(self, swept: Swept) -> dict[Leftover, _Removal]:
        found = await asyncio.to_thread(leftovers.reserved, self._places.addresses)
        known = self._known().containers
        return {
            Leftover(LeftoverKind.ADDRESS, one.address, one.container): partial(
                asyncio.to_thread, leftovers.release, one
            )
            for one in found
            if one.container not in known
        }

    async def _results(self, swept: Swept) -> dict[Leftover, _Removal]:
        found, network = await asyncio.to_thread(self._places.cache.records), self._places.network
        damaged = [one.file.name for one in found if isinstance(one, Damaged)]
        swept.left_alone += [
            Leftover(LeftoverKind.RESULT, name, "") for name in damaged if name.startswith(f"{network}-")
        ]
        known = self._known().containers
        return {
            Leftover(LeftoverKind.RESULT, f"{network}-{one.container_id}-{one.ifname}", one.container_id): partial(
                self._forget, one
            )
            for one in found
            if isinstance(one, Record) and one.network_name == network and one.container_id not in known
        }

    async def _forget(self, left: Record) -> bool:
        remove = self._places.cache.remove
        await asyncio.to_thread(remove, left.network_name, left.container_id, left.ifname)
        return True

    async def _rules(self, swept: Swept) -> dict[Leftover, _Removal]:
        seen: dict[Leftover, _Removal] = {}
        for program in _PROGRAMS:
            saved = await run(f"listing rules of {program}", f"{program}-save", launcher=self._launcher)
            known, places = self._known(), self._places
            found: Iterable[LeftRules] = (
                *iptables.left_by_unknown(saved, places.network, known.containers),
                *iptables.left_for_addresses(saved, places.subnets, known.addresses),
            )
            for one in found:
                leftover = Leftover(LeftoverKind.RULES, f"{program} {one.table}", one.owner)
                seen[leftover] = partial(self._remove_rules, program, one)
        return seen

    async def _remove_rules(self, program: str, left: LeftRules) -> bool:
        """Fails as a whole where a plugin changed one of them meanwhile; the next sweep sees what is there then."""
        await run(
            f"removing rules of {left.owner}",
            f"{program}-restore",
            "--noflush",
            "--wait",
            "5",
            launcher=self._launcher,
            feed=left.removal(),
        )
        return True

    async def _links(self, swept: Swept) -> dict[Leftover, _Removal]:
        """A pair that lies within the node's own namespace is of an attachment that was never finished.

        One that leads elsewhere has a living namespace at its other end, else the kernel had removed it: somebody may
        be using it, so it is reported.
        """
        found = await bridge.look(self._places.bridge, self._launcher)
        known = self._known().ports
        seen: dict[Leftover, _Removal] = {}
        for port in found.ports if found else ():
            if port.kind != "veth" or port.name in known:
                continue
            leftover = Leftover(LeftoverKind.LINK, port.name, port.name)
            if port.peer_elsewhere:
                swept.left_alone.append(leftover)
            else:
                seen[leftover] = partial(self._remove_link, port.name)
        return seen

    async def _remove_link(self, name: str) -> bool:
        """Unless it is another by now."""
        found = await bridge.look(self._places.bridge, self._launcher)
        if not found or not any(port.name == name and not port.peer_elsewhere for port in found.ports):
            return False
        await run(f"removing link {name}", "ip", "link", "delete", name, "type", "veth", launcher=self._launcher)
        return True
