"""Who may reach whom, and which firewall a network of a node gets."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from perdure.api.conditions import Reason
from perdure.api.names import InstallationId, Kind, NamespaceUid, RuntimeRef, Uid
from perdure.api.network import NetworkPeer, NetworkPolicy
from perdure.network.attachments import Attached, Attachments
from perdure.network.bridged import DEFAULT_BRIDGE, DEFAULT_DATA_DIR, Bridged, bridged
from perdure.network.cni.configuration import Network, parse
from perdure.network.firewall import Firewall
from perdure.network.isolation import Isolation, allowed, resolver_is_here, resolvers_in_metadata, rules_of
from perdure.network.rules import METADATA, Allowed, Member, NetworkRules, beyond, merged
from perdure.network.tables import Tables
from perdure.reconcile.ports.errors import SandboxFailed

INSTALLATION = InstallationId("an-installation")
IPAM = {"type": "host-local", "subnet": "10.88.0.0/24"}


def network(name: str = "agents", ipam: Mapping[str, object] | None = None, **plugin: object) -> Network:
    bridge = {"type": "bridge", "bridge": "br0", "ipam": IPAM if ipam is None else ipam, **plugin}
    return parse(json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": [bridge]}).encode(), "a test")


def attached(
    uid: str,
    *peers: NetworkPeer,
    namespace: str = "a",
    kind: Kind = Kind.BOT,
    on: str = "agents",
    port: str | None = None,
    bridge: str = "br0",
    subnet: str = "10.88.0.0/24",
) -> Attached:
    number = int(uid)
    return Attached(
        ref=RuntimeRef(kind, namespace, f"r{uid}", Uid(uid), NamespaceUid(f"ns-{namespace}")),
        network=on,
        bridge=bridge,
        subnets=(subnet,) if bridge else (),
        addresses=(str(ip_network(subnet)[number]),),
        port=f"veth{uid}" if port is None else port,
        mac=f"02:00:00:00:00:{number:02x}" if port is None else "",
        policy=NetworkPolicy(allow_from=peers),
    )


# ---------------------------------------------------------------------------------------------- policies


FROM_B = attached("3", namespace="b")
GAME_OF_B = attached("4", namespace="b", kind=Kind.GAME)
SIBLING = attached("2")


@pytest.mark.parametrize(
    ("peers", "sources"),
    [
        ((), ""),
        ((NetworkPeer(namespace="b"),), "34"),
        ((NetworkPeer(namespace="b", kind=Kind.GAME),), "4"),
        ((NetworkPeer(namespace="b", name="r3"),), "3"),
        ((NetworkPeer(namespace="b", kind=Kind.GAME, name="r3"),), ""),
        ((NetworkPeer(namespace="b", name="r3"), NetworkPeer(namespace="b", kind=Kind.GAME)), "34"),
        ((NetworkPeer(name="r3"),), ""),
        ((NetworkPeer(),), "2"),
        ((NetworkPeer(namespace="nowhere"),), ""),
    ],
)
def test_a_peer_is_whoever_every_field_that_is_set_fits(peers: tuple[NetworkPeer, ...], sources: str) -> None:
    everybody = (attached("1", *peers), SIBLING, FROM_B, GAME_OF_B)
    assert allowed(everybody) == {Allowed(Uid(source), Uid("1")) for source in sources}


def test_nobody_is_allowed_to_reach_himself_and_nobody_in_return() -> None:
    both = NetworkPeer(namespace="b")
    assert allowed((attached("1", both), attached("3", both, namespace="b"))) == {Allowed(Uid("3"), Uid("1"))}


# ---------------------------------------------------------------------------------------------- which networks


def test_a_bridge_with_addresses_from_host_local_has_a_firewall() -> None:
    assert bridged(network()) == Bridged(
        "agents", "br0", (ip_network("10.88.0.0/24"),), Path(DEFAULT_DATA_DIR) / "agents"
    )
    ranges = {
        "type": "host-local",
        "dataDir": "/run/given",
        "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd88::/64"}, {"subnet": "10.1.0.0/24"}]],
    }
    found = bridged(network(ipam=ranges))
    assert found is not None
    assert found.subnets == (ip_network("10.1.0.0/24"), ip_network("fd88::/64"))
    assert found.addresses == Path("/run/given/agents")


def test_what_the_plugin_takes_by_default_is_taken() -> None:
    found = bridged(
        parse(
            json.dumps({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "bridge", "ipam": IPAM}]}).encode(),
            "t",
        )
    )
    assert found is not None
    assert found.bridge == DEFAULT_BRIDGE
    assert bridged(network(vlan=0, vlanTrunk=None)) == bridged(network())


@pytest.mark.parametrize("plugin", [{"type": "ptp"}, {"type": "macvlan"}, {"ipam": {"type": "dhcp"}}, {"ipam": {}}])
def test_other_networks_have_none(plugin: dict[str, Any]) -> None:
    assert bridged(network(**plugin)) is None
    assert rules_of(INSTALLATION, network(**plugin), frozenset()) is None


@pytest.mark.parametrize(
    "plugin",
    [
        {"bridge": 7},
        {"ipam": {"type": "host-local", "subnet": "no subnet"}},
        {"ipam": {"type": "host-local"}},
        {"bridge": "a name that is too long"},
        {"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/8"}], [{"subnet": "10.1.0.0/16"}]]}},
        {"vlan": 100},
        {"vlanTrunk": [{"minID": 100, "maxID": 200}]},
    ],
)
def test_a_network_that_no_firewall_can_be_made_for_is_refused(plugin: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        rules_of(INSTALLATION, network(**plugin), frozenset())


# ---------------------------------------------------------------------------------------------- members


Kernel = dict[str, "Table"]
"""Tables by name, as all firewalls and agents of a node share them."""


class Table:
    def __init__(self, rules: NetworkRules, members: Mapping[Uid, Member], pairs: frozenset[Allowed]) -> None:
        self.rules, self.members, self.pairs = rules, dict(members), pairs


class FakeFirewall:
    """Writes what it was told last into its table of the kernel."""

    def __init__(self, rules: NetworkRules, kernel: Kernel) -> None:
        self.rules = rules
        self._kernel = kernel
        self._members: dict[Uid, Member] = {}
        self._pairs: frozenset[Allowed] = frozenset()
        self.away: SandboxFailed | None = None

    def _write(self) -> None:
        had = [address for member in self._members.values() for address in member.addresses]
        if len(had) != len(set(had)):
            raise SandboxFailed("the map has two verdicts for one address: File exists")
        self._kernel[self.rules.table] = Table(self.rules, self._members, self._pairs)

    async def restore(self, members: Iterable[Member], pairs: Iterable[Allowed] = ()) -> tuple[str, ...]:
        self._members, self._pairs = {member.uid: member for member in members}, frozenset(pairs)
        self._write()
        return ()

    async def admit(self, member: Member) -> None:
        for other in tuple(self._members.values()):
            if other.port == member.port or not set(other.addresses).isdisjoint(member.addresses):
                del self._members[other.uid]
        self._members[member.uid] = member
        self._write()

    async def expel(self, uid: Uid) -> None:
        self._members.pop(uid, None)
        self._write()

    async def allow(self, pairs: Iterable[Allowed]) -> None:
        self._pairs = frozenset(pairs)
        self._write()

    async def ensure(self) -> tuple[str, ...]:
        if self.away is not None:
            raise self.away
        missing = self.rules.table not in self._kernel
        self._write()
        return (f"the table of {self.rules.bridge}",) if missing else ()


class FakeTables:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.firewalls: dict[str, FakeFirewall] = {}
        self.programmed = 0
        self.away: SandboxFailed | None = None

    def firewall(self, rules: NetworkRules) -> Firewall:
        self.programmed += 1
        self.firewalls[rules.bridge] = FakeFirewall(rules, self._kernel)
        return cast(Firewall, self.firewalls[rules.bridge])

    async def keep(self, names: Collection[str]) -> None:
        if self.away is not None:
            raise self.away
        for name in self._kernel.keys() - names:
            del self._kernel[name]


class Node:
    def __init__(self, folder: Path, *known: Attached) -> None:
        self._folder = folder
        self.kernel: Kernel = {}
        self.start()
        for one in known:
            self.attachments.put(one)

    def start(self) -> None:
        """A new agent."""
        self.attachments = Attachments(self._folder)
        self.attachments.load()
        self.tables = FakeTables(self.kernel)
        self.isolation = Isolation(INSTALLATION, self.attachments, tables=cast(Tables, self.tables))

    async def admit(self, one: Attached) -> None:
        """As a sandbox does."""
        await self.isolation.admit(one)
        self.attachments.put(one)

    async def expel(self, uid: str) -> None:
        await self.isolation.expel(Uid(uid))
        self.attachments.remove(Uid(uid))

    def on(self, bridge: str = "br0") -> Table:
        (table,) = (table for table in self.kernel.values() if table.rules.bridge == bridge)
        return table

    def members(self) -> dict[str, set[str]]:
        return {table.rules.bridge: set(table.members) for table in self.kernel.values()}


TO_1 = Allowed(Uid("3"), Uid("1"))


async def test_a_new_agent_admits_who_is_on_record(tmp_path: Path) -> None:
    node = Node(tmp_path / "f", attached("1", NetworkPeer(namespace="b")), FROM_B)
    for _ in range(2):
        await node.isolation.use(network())
    assert node.tables.programmed == 1
    assert node.members() == {"br0": {"1", "3"}}
    assert node.on().pairs == {TO_1}
    assert await node.isolation.ensure() == ()


async def test_whoever_has_no_port_on_the_bridge_is_no_member_and_stops_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path / "f", FROM_B, attached("8", port=""))
    await node.isolation.use(network())
    assert node.members() == {"br0": {"3"}}


async def test_whoever_cannot_be_named_by_a_rule_is_not_admitted(tmp_path: Path) -> None:
    node = Node(tmp_path / "f")
    await node.isolation.use(network())
    with pytest.raises(SandboxFailed, match="cannot be protected"):
        await node.isolation.admit(attached("8", port=""))
    assert node.members() == {"br0": set()}


async def test_pairs_follow_those_who_come_and_go(tmp_path: Path) -> None:
    node = Node(tmp_path / "f")
    await node.isolation.use(network())
    await node.isolation.admit(attached("1", NetworkPeer(namespace="b")))
    assert node.on().pairs == frozenset()
    await node.isolation.admit(FROM_B)
    assert set(node.on().members) == {"1", "3"}
    assert node.on().pairs == {TO_1}
    await node.isolation.admit(attached("1"))
    assert node.on().pairs == frozenset()
    await node.isolation.admit(attached("1", NetworkPeer(namespace="b")))
    await node.isolation.expel(Uid("3"))
    assert set(node.on().members) == {"1"}
    assert node.on().pairs == frozenset()


@pytest.mark.parametrize("taken", ["addresses", "port"])
async def test_whoever_has_what_another_was_admitted_with_takes_its_place(tmp_path: Path, taken: str) -> None:
    """The first one's start failed after its attachment was made, so its address and its link are free again."""
    node = Node(tmp_path / "f")
    await node.isolation.use(network())
    first, other = attached("1"), attached("3", namespace="b")
    heir = msgspec.structs.replace(other, **{taken: getattr(first, taken)})
    node.tables.away = SandboxFailed("nft is away")
    with pytest.raises(SandboxFailed, match="nft is away"):
        await node.isolation.use(network(ipam=NEW_IPAM))
    with pytest.raises(SandboxFailed, match="nft is away"):
        await node.admit(first)
    node.tables.away = None
    await node.admit(heir)
    assert node.members() == {"br0": {"3"}}
    await node.isolation.use(network())
    assert await node.isolation.ensure() == ()
    assert node.members() == {"br0": {"3"}}


async def test_a_network_without_a_bridge_is_left_to_its_own_plugins(tmp_path: Path) -> None:
    node = Node(tmp_path / "f")
    await node.isolation.use(network(type="ptp"))
    await node.isolation.admit(attached("1", port="", bridge=""))
    await node.isolation.expel(Uid("1"))
    assert (node.kernel, await node.isolation.ensure()) == ({}, ())


# ---------------------------------------------------------------------------------------------- changed configurations


OLD = "10.88.0.0/24"
NEW = "10.99.0.0/24"
NEW_IPAM = {"type": "host-local", "subnet": NEW}
CHANGES: dict[str, tuple[Network, Attached, dict[str, set[str]]]] = {
    "another bridge and subnet": (
        network(bridge="br1", ipam=NEW_IPAM),
        attached("5", namespace="b", bridge="br1", subnet=NEW),
        {"br0": {"1", "3"}, "br1": {"5"}},
    ),
    "another subnet": (network(ipam=NEW_IPAM), attached("5", namespace="b", subnet=NEW), {"br0": {"1", "3", "5"}}),
    "another name": (network("games"), attached("5", namespace="b", on="games"), {"br0": {"1", "3", "5"}}),
    "another name, bridge and subnet": (
        network("games", bridge="br1", ipam=NEW_IPAM),
        attached("5", namespace="b", on="games", bridge="br1", subnet=NEW),
        {"br0": {"1", "3"}, "br1": {"5"}},
    ),
    "no bridge of ours": (network(type="ptp"), attached("5", port="", bridge=""), {"br0": {"1", "3"}}),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_whoever_runs_stays_isolated_whatever_the_configuration_becomes(tmp_path: Path, change: str) -> None:
    changed, newcomer, members = CHANGES[change]
    node = Node(tmp_path / "f")
    await node.isolation.use(network())
    await node.admit(attached("1", NetworkPeer(namespace="b")))
    await node.admit(FROM_B)
    await node.isolation.use(changed)
    await node.admit(newcomer)
    assert node.members() == members
    assert TO_1 in node.on().pairs
    assert ip_network(OLD) in node.on().rules.subnets, "what leaves it goes on to be masqueraded"
    for restarted in (False, True):
        if restarted:
            node.start()
        node.kernel.clear()
        await node.isolation.ensure()
        assert node.members() == members, "no configuration is asked for"
        assert TO_1 in node.on().pairs
    for uid in ("1", "3"):
        await node.expel(uid)
    assert node.members() == {bridge: here & {"5"} for bridge, here in members.items() if here & {"5"}}


async def test_runtimes_of_two_bridges_do_not_reach_each_other(tmp_path: Path) -> None:
    node = Node(tmp_path / "f", FROM_B)
    await node.isolation.use(network(bridge="br1", ipam=NEW_IPAM))
    await node.admit(attached("5", bridge="br1", subnet=NEW))
    assert node.on("br0").rules.unreachable == merged((*METADATA, ip_network(NEW)))
    assert node.on("br1").rules.unreachable == merged((*METADATA, ip_network(OLD)))
    await node.expel("3")
    assert node.on("br1").rules.unreachable == METADATA


async def test_a_changed_network_that_nobody_was_on_leaves_no_table(tmp_path: Path) -> None:
    node = Node(tmp_path / "f")
    await node.isolation.use(network())
    await node.isolation.use(network(bridge="br1", ipam=NEW_IPAM))
    assert node.members() == {"br1": set()}


async def test_a_table_that_an_earlier_agent_left_goes(tmp_path: Path) -> None:
    node = Node(tmp_path / "f", FROM_B)
    await node.isolation.ensure()
    node.attachments.remove(FROM_B.ref.uid)
    node.start()
    await node.isolation.use(network(bridge="br1", ipam=NEW_IPAM))
    assert node.members() == {"br1": set()}


async def test_one_firewall_that_cannot_be_repaired_keeps_no_other_from_it(tmp_path: Path) -> None:
    node = Node(tmp_path / "f", FROM_B, attached("5", bridge="br1", subnet=NEW))
    await node.isolation.ensure()
    for broken, other in (("br0", "br1"), ("br1", "br0")):
        node.kernel.clear()
        node.tables.firewalls[broken].away = SandboxFailed("nft is away")
        with pytest.raises(SandboxFailed, match="nft is away"):
            await node.isolation.ensure()
        assert list(node.members()) == [other]
        node.tables.firewalls[broken].away = None


async def test_whoever_is_attached_to_another_bridge_leaves_the_first(tmp_path: Path) -> None:
    node = Node(tmp_path / "f", FROM_B)
    await node.isolation.use(network(bridge="br1", ipam=NEW_IPAM))
    await node.admit(attached("3", namespace="b", bridge="br1", subnet=NEW))
    assert node.members() == {"br1": {"3"}}


@pytest.mark.parametrize(
    ("own", "others", "found"),
    [
        ("10.88.0.0/24", "10.99.0.0/24", "10.99.0.0/24"),
        ("10.88.0.0/24", "10.88.0.0/24", ""),
        ("10.88.0.0/16", "10.88.1.0/24", ""),
        ("10.88.0.0/25", "10.88.0.0/24", "10.88.0.128/25"),
        ("10.88.0.0/24", "fd00::/64", "fd00::/64"),
        ("fd00::/65", "fd00::/64", "fd00:0:0:0:8000::/65"),
    ],
)
def test_what_is_of_another_bridge_is_out_of_reach_but_for_what_is_our_own(own: str, others: str, found: str) -> None:
    expected = {ip_network(found)} if found else set()
    assert set(beyond([ip_network(own)], [ip_network(others)])) == {*METADATA, *expected}


def test_subnets_that_overlap_are_made_one() -> None:
    given = [ip_network(one) for one in ("fd00::/64", "10.88.0.0/16", "10.88.1.0/24")]
    assert merged(given) == (ip_network("10.88.0.0/16"), ip_network("fd00::/64"))


async def test_what_cannot_be_protected_is_not_used(tmp_path: Path) -> None:
    node = Node(tmp_path / "f")
    with pytest.raises(SandboxFailed, match="network agents") as caught:
        await node.isolation.use(network(bridge="a name that is too long"))
    assert (caught.value.reason, caught.value.of_node) == (Reason.CNI_CONFIGURATION_INVALID, True)


# ---------------------------------------------------------------------------------------------- the resolver


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nameserver",
        "search here\n",
        "nameserver 127.0.0.53\n",
        "nameserver ::1\n",
        "nameserver 192.0.2.1\n",
        "nameserver not-an-address\n",
        "nameserver 2001:db8::1%eth0\n",
        "# nameserver 192.0.2.1\n",
    ],
)
def test_a_resolver_that_runtimes_do_not_ask_on_this_node_opens_nothing(text: str) -> None:
    assert not resolver_is_here(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ()),
        ("search here\nnameserver 127.0.0.53\nnameserver 192.0.2.1\n", ()),
        ("# nameserver 169.254.169.254\nnameserver not-an-address\n", ()),
        ("nameserver 169.254.169.254\nnameserver 192.0.2.1\n", ("169.254.169.254",)),
        ("nameserver fd20:ce::254\nnameserver 169.254.169.253\n" * 2, ("169.254.169.253", "fd20:ce::254")),
        ("nameserver 100.100.2.136\n", ()),
    ],
)
def test_a_name_server_where_metadata_are_is_found(text: str, found: tuple[str, ...]) -> None:
    assert resolvers_in_metadata(text) == tuple(ip_address(one) for one in found)


async def test_name_servers_where_metadata_are_may_be_asked_from_every_bridge(tmp_path: Path) -> None:
    node = Node(tmp_path / "f", FROM_B)
    resolvers = (ip_address("169.254.169.254"),)
    isolation = Isolation(INSTALLATION, node.attachments, tables=cast(Tables, node.tables), resolvers=resolvers)
    await isolation.use(network(bridge="br1", ipam=NEW_IPAM))
    assert {table.rules.resolvers for table in node.kernel.values()} == {resolvers}
    assert len(node.kernel) == 2
