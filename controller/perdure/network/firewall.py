"""The node's firewall for one network: our own nftables tables, programmed whole or by element, and verified.

Called by sandboxes: `restore` once at the start, `admit` and `expel` with each runtime, `ensure` from time to time.
What is wanted lives here in memory; nothing is taken for granted that nft does not show. The tables are ours alone, so
`iptables -F` does not reach them; after `nft flush ruleset` the next `ensure` or `admit` puts them back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Set
from contextlib import asynccontextmanager

import structlog

from perdure.api.names import NamespaceUid, Uid
from perdure.network import listing, ruleset
from perdure.network.command import CommandFailed, Launcher, run
from perdure.network.listing import Listing
from perdure.network.rules import Allowed, Member, NetworkRules
from perdure.network.ruleset import Element, Family
from perdure.reconcile.ports.errors import SandboxFailed

log = structlog.get_logger(__name__)

_SHOWN = 20
"""Differences that one log line or message names; more of them say no more."""
_MISSING = "No such file or directory"
"""ENOENT, which nft(8) says of a table, set, chain or element that is not there."""


class Firewall:
    """Raises `SandboxFailed`, mostly as `CommandFailed`. One change at a time; a cancelled change is repaired by `ensure`."""

    def __init__(self, rules: NetworkRules, launcher: Launcher = ()) -> None:
        self.rules = rules
        self._launcher = launcher
        self._members: dict[Uid, Member] = {}
        self._allowed: frozenset[Allowed] = frozenset()
        self._pairs: dict[Uid, set[Allowed]] = {}
        """`_allowed` by both ends: a change costs what it touches, not what there is."""
        self._restored = False
        self._reference: Listing | None = None
        self._turn = asyncio.Lock()

    @property
    def members(self) -> tuple[Member, ...]:
        return tuple(self._members.values())

    async def restore(self, members: Iterable[Member], allowed: Iterable[Allowed] = ()) -> tuple[str, ...]:
        """Begin with these members and pairs, then as `ensure`. Everything else waits for it: it would expel them."""
        async with self._turn:
            self._restored = True
            self._members = {member.uid: member for member in members}
            self._replace_pairs(frozenset(allowed))
            return await self._ensure()

    async def ensure(self) -> tuple[str, ...]:
        """Make the tables what they should be. Returns what was repaired; empty: nothing was written."""
        async with self._its_turn():
            return await self._ensure()

    async def verify(self) -> tuple[str, ...]:
        """How the tables differ from what they should be; nothing is written."""
        async with self._its_turn():
            return await self._differences()

    async def admit(self, member: Member) -> None:
        """Before the runtime starts. Whoever had its port or one of its addresses before has left."""
        async with self._its_turn():
            leaving = [
                other
                for other in self._members.values()
                if other.uid == member.uid
                or other.port == member.port
                or not set(other.addresses).isdisjoint(member.addresses)
            ]
            members = {**self._members}
            for other in leaving:
                del members[other.uid]
            members[member.uid] = member
            await self._exchange(leaving, [member], members)

    async def expel(self, uid: Uid) -> None:
        """After the runtime has stopped and before its address may become another's. Nobody of that uid: nothing."""
        async with self._its_turn():
            if uid in self._members:
                members = {**self._members}
                await self._exchange([members.pop(uid)], [], members)

    async def allow(self, allowed: Iterable[Allowed]) -> None:
        """Exactly these pairs from now on. Routed connections of a pair that goes live on until they end."""
        async with self._its_turn():
            gone, new = self._replace_pairs(frozenset(allowed))
            await self._change(self._members, _between(gone, self._members), _between(new, self._members))

    async def remove(self) -> None:
        """Take the tables away, for a network that is no more. Nothing there: nothing."""
        async with self._turn:
            self._replace_pairs(frozenset())
            self._members, self._restored = {}, False
            await self._program("removing the firewall", ruleset.removal(self.rules))

    @asynccontextmanager
    async def _its_turn(self) -> AsyncIterator[None]:
        async with self._turn:
            if not self._restored:
                raise SandboxFailed(f"the members of network {self.rules.name} are not known yet; it is tried again")
            yield

    def _replace_pairs(self, pairs: frozenset[Allowed]) -> tuple[frozenset[Allowed], frozenset[Allowed]]:
        """Which are gone and which are new."""
        gone, new = self._allowed - pairs, pairs - self._allowed
        for pair in gone:
            for uid in {*pair}:
                self._pairs[uid].discard(pair)
                if not self._pairs[uid]:
                    del self._pairs[uid]
        for pair in new:
            for uid in {*pair}:
                self._pairs.setdefault(uid, set()).add(pair)
        self._allowed = pairs
        return gone, new

    async def _exchange(self, leaving: list[Member], coming: list[Member], members: dict[Uid, Member]) -> None:
        """Those who leave for those who come; pairs stay as they are, and count while both ends are here."""
        before, after = (
            {element for member in touched for element in ruleset.elements_of(member)}
            | _between({pair for member in touched for pair in self._pairs.get(member.uid, ())}, group)
            for touched, group in ((leaving, self._members), (coming, members))
        )
        await self._change(members, before, after)

    async def _change(self, members: dict[Uid, Member], before: Set[Element], after: Set[Element]) -> None:
        """One transaction to `members` from what goes to what comes; the whole where the tables are not as thought."""
        old, new = ({member.namespace for member in group.values()} for group in (self._members, members))
        text = (
            ruleset.deleted(self.rules, before - after)
            + "".join(ruleset.namespace_removed(self.rules, namespace) for namespace in sorted(old - new))
            + "".join(ruleset.namespace_added(self.rules, namespace) for namespace in sorted(new - old))
            + ruleset.added(self.rules, after - before)
        )
        self._members = members
        if not text:
            return
        try:
            await self._program("changing the firewall", text)
        except CommandFailed as error:
            if error.code is None:
                raise
            log.info("firewall_found_changed", network=self.rules.name, error=error.said[-300:])
            await self._ensure()

    async def _ensure(self) -> tuple[str, ...]:
        found = await self._differences()
        if not found:
            return ()
        began = time.monotonic()
        await self._program("programming the firewall", await asyncio.to_thread(self._whole))
        left = await self._differences()
        if left:
            raise SandboxFailed(
                f"the firewall of network {self.rules.name} is not what was programmed: {'; '.join(left[:_SHOWN])}; "
                f"look for software that changes table {self.rules.table}"
            )
        seconds = round(time.monotonic() - began, 3)
        log.info("firewall_repaired", network=self.rules.name, differences=found[:_SHOWN], seconds=seconds)
        return found

    async def _differences(self) -> tuple[str, ...]:
        if self._reference is None:
            self._reference = await self._shown_elsewhere()
        printed = "\n".join([await self._printed(family) for family in Family])
        return await asyncio.to_thread(self._compared, printed, self._reference)

    def _compared(self, printed: str, reference: Listing) -> tuple[str, ...]:
        """Blocking: a thousand members are a megabyte of JSON. In a thread, while `_turn` keeps the members as they are."""
        want = listing.wanted(reference, self._namespaces(), self._elements())
        return tuple(listing.differences(self._parsed(printed), want))

    def _whole(self) -> str:
        """Blocking, as `_compared`."""
        return ruleset.replacement(self.rules, self._namespaces(), self._elements())

    def _namespaces(self) -> frozenset[NamespaceUid]:
        return frozenset(member.namespace for member in self._members.values())

    def _elements(self) -> frozenset[Element]:
        here = self._members
        found = {element for member in here.values() for element in ruleset.elements_of(member)}
        return frozenset(found | _between(self._allowed, here))

    async def _printed(self, family: Family) -> str:
        """One table as JSON, empty where it is missing. nft reads but the first one's family for a command of two."""
        command = ("nft", "-j", "list", "table", family, self.rules.table)
        try:
            return await run("reading the firewall", *command, launcher=self._launcher)
        except CommandFailed as error:
            if error.code is not None and error.says(_MISSING):
                return ""
            raise

    async def _shown_elsewhere(self) -> Listing:
        """How this nft and this kernel show our rules: programmed in a network namespace that goes with the command."""
        shell = ("unshare", "--net", "sh", "-ec", "nft -f - && exec nft -j list ruleset")
        text = ruleset.skeleton(self.rules, [ruleset.TEMPLATE])
        return self._parsed(await run("trying the firewall's rules", *shell, launcher=self._launcher, feed=text))

    def _parsed(self, printed: str) -> Listing:
        try:
            return listing.parse(printed)
        except (ValueError, KeyError, TypeError) as error:
            raise SandboxFailed(
                f"reading the firewall of network {self.rules.name}: nft printed what is not its JSON: {error!r}; "
                f"nftables 1.0 or newer is needed"
            ) from error

    async def _program(self, doing: str, text: str) -> None:
        """`nft -f` is one transaction: all of it or nothing (nft(8))."""
        await run(f"{doing} of network {self.rules.name}", "nft", "-f", "-", launcher=self._launcher, feed=text)


def _between(pairs: Iterable[Allowed], here: Mapping[Uid, Member]) -> set[Element]:
    """What the pairs add of which both ends are here."""
    return {
        element
        for pair in pairs
        if pair.source in here and pair.target in here
        for element in ruleset.elements_between(here[pair.source], here[pair.target])
    }
