"""What the firewall tells nft with each change: what is wanted then and was not before, at a cost that grows with the change."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.api.names import InstallationId, NamespaceUid, Uid
from perdure.network import firewall as subject
from perdure.network import ruleset
from perdure.network.firewall import Firewall
from perdure.network.rules import Allowed, Member, NetworkRules

RULES = NetworkRules(InstallationId("here"), "agents", "br0", (ip_network("10.1.0.0/16"),))


class Nft:
    """Shows no table, as those of an empty one; elements are as in the kernel: none is deleted that is not there."""

    def __init__(self) -> None:
        self.elements: set[tuple[str, str]] = set()

    async def run(self, doing: str, *command: str, launcher: tuple[str, ...] = (), feed: str = "") -> str:
        if command == ("nft", "-f", "-"):
            for verb, collection, inside in re.findall(r"^(add|delete) element (.*) \{ (.*) \}$", feed, re.MULTILINE):
                told = {(collection, one) for one in inside.split(", ")}
                if verb == "delete":
                    assert told <= self.elements
                    self.elements -= told
                else:
                    self.elements |= told
        return '{"nftables": []}'


@pytest.fixture
def nft(monkeypatch: pytest.MonkeyPatch) -> Nft:
    made = Nft()
    monkeypatch.setattr(subject, "run", made.run)
    return made


def member(uid: int, address: int, port: int, namespace: int) -> Member:
    octets = f"02:00:00:00:{uid >> 8:02x}:{uid & 255:02x}"
    at = ip_address("10.1.0.0") + address
    return Member(Uid(f"u{uid}"), NamespaceUid(f"ns{namespace}"), f"veth{port}", octets, (at,))


FEW = st.integers(0, 4)
MEMBERS = st.builds(member, FEW, FEW, FEW, FEW)
PAIRS = st.builds(Allowed, FEW.map("u{}".format).map(Uid), FEW.map("u{}".format).map(Uid))
Change = Member | Uid | frozenset[Allowed]
CHANGES: st.SearchStrategy[list[Change]] = st.lists(
    st.one_of(MEMBERS, FEW.map("u{}".format).map(Uid), st.frozensets(PAIRS)), max_size=20
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES)
def test_elements_are_those_of_whoever_is_here_after_every_change(nft: Nft, changes: list[Change]) -> None:
    nft.elements.clear()
    asyncio.run(_follow(nft, changes))


async def _follow(nft: Nft, changes: list[Change]) -> None:
    firewall = Firewall(RULES)
    await firewall.restore([])
    pairs: frozenset[Allowed] = frozenset()
    for change in changes:
        match change:
            case Member():
                await firewall.admit(change)
            case str():
                await firewall.expel(change)
            case _:
                pairs = change
                await firewall.allow(pairs)
        here = {one.uid: one for one in firewall.members}
        wanted = {element for one in here.values() for element in ruleset.elements_of(one)}
        for source, target in pairs:
            if source in here and target in here:
                wanted |= ruleset.elements_between(here[source], here[target])
        fresh = Nft()
        await fresh.run("", "nft", "-f", "-", feed=ruleset.added(RULES, wanted))
        assert nft.elements == fresh.elements


async def test_a_change_costs_what_it_touches_and_not_what_there_is(nft: Nft, monkeypatch: pytest.MonkeyPatch) -> None:
    firewall, asked = Firewall(RULES), _counted(monkeypatch)
    await firewall.restore([])
    crowd = [member(n, n, n, n) for n in range(200)]
    for one in crowd:
        await firewall.admit(one)
    pairs = frozenset(Allowed(crowd[n].uid, crowd[(n + m) % 200].uid) for n in range(200) for m in range(1, 51))
    await firewall.allow(pairs)
    assert asked() == len(pairs) == 10_000
    newcomer = member(200, 200, 200, 200)
    await firewall.admit(newcomer)
    assert asked() == 0
    own = {Allowed(one.uid, newcomer.uid) for one in crowd} | {Allowed(newcomer.uid, one.uid) for one in crowd}
    await firewall.allow(pairs | own)
    assert asked() == 400
    await firewall.expel(newcomer.uid)
    assert asked() == 400
    await firewall.allow(pairs)
    assert asked() == 0


def _counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many pairs were asked for their elements since the last call."""
    asked: list[None] = []
    between = ruleset.elements_between

    def counting(source: Member, target: Member) -> frozenset[ruleset.Element]:
        asked.append(None)
        return between(source, target)

    def since() -> int:
        found = len(asked)
        asked.clear()
        return found

    monkeypatch.setattr(ruleset, "elements_between", counting)
    return since
