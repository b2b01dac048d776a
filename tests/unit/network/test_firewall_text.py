"""Wanted state to nftables text, and what nft lists to differences."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from perdure.api.names import InstallationId, NamespaceUid, NodeName, Uid
from perdure.network import listing, ruleset
from perdure.network.rules import Member, NetworkRules, NodePort, Transport, owner_of, table_prefix
from perdure.network.ruleset import TEMPLATE, Element, Family, namespace_chain

RULES = NetworkRules(InstallationId("here"), "agents", "br0", (ip_network("10.1.0.0/24"), ip_network("fd01::/64")))
MEMBER = Member(
    Uid("a"),
    NamespaceUid("one"),
    "veth0",
    "02:00:00:00:00:0a",
    (ip_address("10.1.0.2"), ip_address("fd01::2")),
)
ONE = NamespaceUid("one")


def test_tables_of_other_installations_and_bridges_have_other_names() -> None:
    there = replace(RULES, installation=InstallationId("there"))
    tables = {rules.table for rules in (RULES, there, replace(RULES, bridge="br1"), replace(there, bridge="br1"))}
    assert len(tables) == 4
    assert replace(RULES, name="games", subnets=(ip_network("10.2.0.0/24"),)).table == RULES.table
    ours = [table for table in tables if table.startswith(table_prefix(RULES.installation))]
    assert len(ours) == 2
    one, other = (table_prefix(owner_of(RULES.installation, NodeName(name))) for name in ("one", "other"))
    assert one != other


@pytest.mark.parametrize("name", ["", "a b", 'br"; flush ruleset', "sixteen-letters-", "br0;", "br\n"])
def test_a_link_name_that_nft_would_read_otherwise_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        replace(RULES, bridge=name)
    with pytest.raises(ValueError):
        replace(MEMBER, port=name)


def test_networks_and_ports_that_cannot_be_programmed_are_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        replace(RULES, subnets=(ip_network("10.0.0.0/8"), ip_network("10.1.0.0/24")))
    with pytest.raises(ValueError, match="no subnet"):
        replace(RULES, subnets=())
    with pytest.raises(ValueError, match="65536"):
        NodePort(Transport.TCP, 65536)
    with pytest.raises(ValueError, match="MAC"):
        replace(MEMBER, mac="02:00:00:00:00:0A")


def test_the_link_local_address_is_the_kernel_s() -> None:
    assert str(replace(MEMBER, mac="52:54:00:12:34:56").link_local) == "fe80::5054:ff:fe12:3456"


def test_an_address_of_one_version_needs_nothing_of_the_other() -> None:
    only4 = ruleset.elements_of(replace(MEMBER, addresses=(ip_address("10.1.0.2"),)))
    assert not {one.collection for one in only4} & {"senders6", "owners6", "neighbours"}
    text = ruleset.skeleton(replace(RULES, subnets=(ip_network("10.1.0.0/24"),)), [])
    assert "ip6 saddr {" not in text
    assert text.count("masquerade") == 1


def test_open_ports_are_those_that_were_asked_for() -> None:
    assert "dport" not in ruleset.skeleton(RULES, [])
    asked = frozenset({NodePort(Transport.UDP, 53), NodePort(Transport.TCP, 53)})
    text = ruleset.skeleton(replace(RULES, open_ports=asked), [])
    assert "meta l4proto . th dport { tcp . 53, udp . 53 } accept" in text


def test_a_name_server_is_asked_before_what_is_around_it_is_closed() -> None:
    asked = (ip_address("169.254.169.254"), ip_address("fd20:ce::254"))
    text = ruleset.skeleton(replace(RULES, resolvers=asked), [])
    for word, address in (("ip", asked[0]), ("ip6", asked[1])):
        accepting = f"{word} daddr {{ {address} }} meta l4proto . th dport {{ tcp . 53, udp . 53 }} accept"
        assert text.index(accepting) < text.index(f"{word} daddr {{ {'100.100' if word == 'ip' else 'fd00:c1'}")


def test_elements_of_a_set_go_in_one_command() -> None:
    other = replace(MEMBER, uid=Uid("b"), port="veth1")
    both = [Element(Family.BRIDGE, "ports", (member.port,)) for member in (MEMBER, other)]
    assert ruleset.added(RULES, both) == f'add element bridge {RULES.table} ports {{ "veth0", "veth1" }}\n'
    assert ruleset.deleted(RULES, []) == ""


def test_an_allowed_pair_is_of_addresses_of_one_version() -> None:
    found = ruleset.elements_between(MEMBER, replace(MEMBER, addresses=(ip_address("10.1.0.3"),)))
    assert {(one.collection, one.key) for one in found} == {("allowed4", ("10.1.0.2", "10.1.0.3"))}
    assert {one.family for one in found} == set(Family)


def listed(*objects: dict[str, object]) -> str:
    return json.dumps({"nftables": [{"metainfo": {"version": "1.0.6"}}, *objects]})


def chain(name: str, *rules: list[object], handle: int = 1) -> list[dict[str, object]]:
    at = {"family": "inet", "table": "t"}
    shown: list[dict[str, object]] = [{"chain": {**at, "name": name, "handle": handle}}]
    for number, rule in enumerate(rules, handle + 1):
        shown.append({"rule": {**at, "chain": name, "handle": number, "expr": rule}})
    return shown


def owners(*elements: object) -> dict[str, object]:
    shown = {"family": "inet", "table": "t", "name": "owners4", "type": "ipv4_addr", "map": "verdict", "handle": 3}
    return {"map": {**shown, "elem": list(elements)} if elements else shown}


ACCEPT: list[object] = [{"match": {"right": {"set": ["a", "b"]}}}, {"accept": None}]
TURNED: list[object] = [{"match": {"right": {"set": ["b", "a"]}}}, {"accept": None}]
DROP: list[object] = [{"drop": None}]


def test_handles_and_the_order_of_anonymous_sets_do_not_count() -> None:
    one = listing.parse(listed(*chain("x", ACCEPT, DROP)))
    other = listing.parse(listed(*chain("x", TURNED, DROP, handle=70)))
    assert listing.differences(one, other) == []


def test_the_order_of_rules_counts() -> None:
    one, other = (listing.parse(listed(*chain("x", *rules))) for rules in ((ACCEPT, DROP), (DROP, ACCEPT)))
    assert listing.differences(one, other) == ["chain inet x was changed"]


def test_every_difference_is_named() -> None:
    to_one = [["10.1.0.2", {"goto": {"target": "ns-1"}}]]
    to_two = [["10.1.0.2", {"goto": {"target": "ns-2"}}]]
    want = listing.parse(listed(*chain("x", DROP), *chain("y"), owners(*to_one)))
    found = listing.parse(listed(*chain("x"), *chain("z"), owners(*to_two)))
    assert listing.differences(found, want) == [
        "chain inet y is missing",
        "chain inet z is not ours",
        "chain inet x was changed",
        "element inet owners4 10.1.0.2 is missing",
        "element inet owners4 10.1.0.2 is not ours",
    ]


def test_a_missing_table_is_one_difference() -> None:
    want = listing.parse(listed(*chain("x", DROP), owners(["10.1.0.2", {"goto": {"target": "ns-1"}}])))
    assert listing.differences(listing.parse(""), want) == ["table inet is missing"]


def test_a_template_s_chain_becomes_that_of_every_namespace() -> None:
    template = namespace_chain(TEMPLATE)
    reference = listing.parse(listed(*chain("x"), *chain(template, [{"match": {"right": f"@{template}-4"}}])))
    want = listing.wanted(reference, [ONE], frozenset())
    mine = namespace_chain(ONE)
    found = listing.parse(listed(*chain("x"), *chain(mine, [{"match": {"right": f"@{mine}-4"}}])))
    assert listing.differences(found, want) == []
    assert listing.differences(found, listing.wanted(reference, [], frozenset())) == [f"chain inet {mine} is not ours"]


def test_elements_of_every_form_are_read() -> None:
    sets: list[dict[str, object]] = [
        {"set": {"family": "bridge", "table": "t", "name": name, "type": "x", "elem": elements}}
        for name, elements in (
            ("macs", [{"concat": ["veth0", "02:00:00:00:00:0a"]}]),
            ("neighbours", [{"concat": ["veth0", "0x0fd010000000000000000000000000002"]}]),
            ("ports", ["veth0"]),
        )
    ]
    found = listing.parse(listed(*sets)).elements
    assert found == {one for one in ruleset.elements_of(MEMBER) if one.collection in ("macs", "ports")} | {
        Element(Family.BRIDGE, "neighbours", ("veth0", hex(int(ip_address("fd01::2")))))
    }


@pytest.mark.parametrize("printed", ["nonsense", '{"nftables": 1}', '{"other": []}'])
def test_what_is_not_a_listing_is_refused(printed: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        listing.parse(printed)
