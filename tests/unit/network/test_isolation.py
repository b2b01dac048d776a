"""Who may reach whom, and which firewall a network of a node gets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any, cast

import pytest

from perdure.api.conditions import Reason
from perdure.api.names import InstallationId, Kind, NamespaceUid, RuntimeRef, Uid
from perdure.api.network import NetworkPeer, NetworkPolicy
from perdure.network.attachments import Attached, Attachments
from perdure.network.bridged import DEFAULT_BRIDGE, DEFAULT_DATA_DIR, Bridged, bridged
from perdure.network.cni.configuration import Network, parse
from perdure.network.firewall import Firewall
from perdure.network.isolation import Isolation, allowed, resolver_is_here, rules_of
from perdure.network.rules import Allowed, Member, NetworkRules
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
) -> Attached:
    number = int(uid)
    return Attached(
        ref=RuntimeRef(kind, namespace, f"r{uid}", Uid(uid), NamespaceUid(f"ns-{namespace}")),
        network=on,
        addresses=(f"10.88.0.{number}",),
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
    ],
)
def test_a_network_that_no_firewall_can_be_made_for_is_refused(plugin: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        rules_of(INSTALLATION, network(**plugin), frozenset())


# ---------------------------------------------------------------------------------------------- members


class FakeFirewall:
    """What it was told last."""

    def __init__(self, rules: NetworkRules) -> None:
        self.rules = rules
        self.members: dict[Uid, Member] = {}
        self.pairs: frozenset[Allowed] = frozenset()
        self.away: SandboxFailed | None = None

    async def restore(self, members: Iterable[Member], pairs: Iterable[Allowed] = ()) -> tuple[str, ...]:
        self.members, self.pairs = {member.uid: member for member in members}, frozenset(pairs)
        return ()

    async def admit(self, member: Member) -> None:
        self.members[member.uid] = member

    async def expel(self, uid: Uid) -> None:
        self.members.pop(uid, None)

    async def allow(self, pairs: Iterable[Allowed]) -> None:
        self.pairs = frozenset(pairs)

    async def ensure(self) -> tuple[str, ...]:
        return ("the table",)


class Node:
    def __init__(self, folder: Path, *known: Attached) -> None:
        attachments = Attachments(folder)
        attachments.load()
        for one in known:
            attachments.put(one)
        self.firewalls: list[FakeFirewall] = []
        self.isolation = Isolation(INSTALLATION, attachments, firewall=self._make)

    def _make(self, rules: NetworkRules) -> Firewall:
        self.firewalls.append(FakeFirewall(rules))
        return cast(Firewall, self.firewalls[-1])


TO_1 = Allowed(Uid("3"), Uid("1"))


async def test_a_new_agent_admits_who_is_on_record_and_only_of_this_network(tmp_path: Path) -> None:
    node = Node(tmp_path / "f", attached("1", NetworkPeer(namespace="b")), FROM_B, attached("9", on="elsewhere"))
    for _ in range(2):
        await node.isolation.use(network())
    (firewall,) = node.firewalls
    assert set(firewall.members) == {"1", "3"}
    assert firewall.pairs == {TO_1}
    assert await node.isolation.ensure() == ("the table",)


async def test_whoever_has_no_port_on_the_bridge_is_no_member_and_stops_nothing(tmp_path: Path) -> None:
    """Attached when the network of this name was none of a bridge."""
    node = Node(tmp_path / "f", FROM_B, attached("8", port=""))
    await node.isolation.use(network())
    assert node.firewalls[0].members.keys() == {"3"}


async def test_whoever_cannot_be_named_by_a_rule_is_not_admitted(tmp_path: Path) -> None:
    node = Node(tmp_path / "f")
    await node.isolation.use(network())
    with pytest.raises(SandboxFailed, match="cannot be protected"):
        await node.isolation.admit(attached("8", port=""))
    assert node.firewalls[0].members == {}


async def test_pairs_follow_those_who_come_and_go(tmp_path: Path) -> None:
    node = Node(tmp_path / "f")
    await node.isolation.use(network())
    (firewall,) = node.firewalls
    await node.isolation.admit(attached("1", NetworkPeer(namespace="b")))
    assert firewall.pairs == frozenset()
    await node.isolation.admit(FROM_B)
    assert set(firewall.members) == {"1", "3"}
    assert firewall.pairs == {TO_1}
    await node.isolation.admit(attached("1"))
    assert firewall.pairs == frozenset()
    await node.isolation.admit(attached("1", NetworkPeer(namespace="b")))
    await node.isolation.expel(Uid("3"))
    assert set(firewall.members) == {"1"}
    assert firewall.pairs == frozenset()


async def test_a_network_without_a_bridge_is_left_to_its_own_plugins(tmp_path: Path) -> None:
    node = Node(tmp_path / "f")
    await node.isolation.use(network(type="ptp"))
    await node.isolation.admit(attached("1", port=""))
    await node.isolation.expel(Uid("1"))
    assert (node.firewalls, await node.isolation.ensure()) == ([], ())


async def test_a_network_that_was_changed_gets_a_firewall_of_its_own(tmp_path: Path) -> None:
    node = Node(tmp_path / "f", FROM_B)
    await node.isolation.use(network())
    await node.isolation.use(network(ipam={"type": "host-local", "subnet": "10.99.0.0/24"}))
    assert [firewall.rules.subnets for firewall in node.firewalls] == [
        (ip_network("10.88.0.0/24"),),
        (ip_network("10.99.0.0/24"),),
    ]


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
