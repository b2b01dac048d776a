"""What plugins leave in iptables, told from what is in use and from what is foreign."""

from __future__ import annotations

from ipaddress import ip_network

from perdure.network.bridge import Bridge, local_mac
from perdure.network.iptables import LeftRules, left_by_unknown, left_for_addresses

SUBNETS = (ip_network("10.77.0.0/24"), ip_network("fd77::/64"))


def comment(network: str, container: str, prefix: str = "") -> str:
    return f'-m comment --comment "{prefix}name: \\"{network}\\" id: \\"{container}\\""'


def masquerade(network: str, container: str, chain: str) -> str:
    """As plugin `bridge` 1.1.1 with ipMasq writes it."""
    said = comment(network, container)
    return (
        f"-A POSTROUTING -s 10.77.0.2/32 {said} -j {chain}\n"
        f"-A {chain} -d 10.77.0.0/24 {said} -j ACCEPT\n"
        f"-A {chain} ! -d 224.0.0.0/4 {said} -j MASQUERADE\n"
    )


MASQ = "CNI-70c38c34277251865fdf3e91"
DNAT = "CNI-DN-70c38c34277251865fdf3"
PUBLISHED = (
    f"-A CNI-HOSTPORT-DNAT -p tcp {comment('agents', 'gone', 'dnat ')} -m multiport --dports 7001 -j {DNAT}\n"
    f"-A {DNAT} -s 10.77.0.0/24 -p tcp -m tcp --dport 7001 -j CNI-HOSTPORT-SETMARK\n"
    f"-A {DNAT} -p tcp -m tcp --dport 7001 -j DNAT --to-destination 10.77.0.2:80\n"
)


def saved(*parts: str, table: str = "nat") -> str:
    return f"# Generated\n*{table}\n:POSTROUTING ACCEPT [0:0]\n:{MASQ} - [0:0]\n{''.join(parts)}COMMIT\n# Completed\n"


def test_rules_and_chains_of_one_attachment_go_together() -> None:
    (left,) = left_by_unknown(saved(masquerade("agents", "gone", MASQ), PUBLISHED), "agents", frozenset())
    assert (left.table, left.owner, left.chains) == ("nat", "gone", (MASQ, DNAT))
    assert [rule.split()[1] for rule in left.rules] == ["POSTROUTING", "CNI-HOSTPORT-DNAT"]
    lines = left.removal().splitlines()
    assert lines[0] == "*nat"
    assert lines[1] == f"-D POSTROUTING -s 10.77.0.2/32 {comment('agents', 'gone')} -j {MASQ}"
    assert lines[3:] == [f"-F {MASQ}", f"-F {DNAT}", f"-X {MASQ}", f"-X {DNAT}", "COMMIT"]


def test_known_attachments_and_other_networks_are_left_alone() -> None:
    text = saved(masquerade("agents", "here", MASQ), masquerade("other", "gone", "CNI-0123456789abcdef01234567"))
    assert left_by_unknown(text, "agents", frozenset({"here"})) == []
    assert [left.owner for left in left_by_unknown(text, "agents", frozenset())] == ["here"]


def test_a_network_whose_name_begins_with_ours_is_another() -> None:
    assert left_by_unknown(saved(masquerade("agents-2", "gone", MASQ)), "agents", frozenset()) == []


def test_a_chain_that_a_known_attachment_leads_to_stays() -> None:
    text = saved(masquerade("agents", "gone", MASQ), f"-A POSTROUTING {comment('agents', 'here')} -j {MASQ}\n")
    (left,) = left_by_unknown(text, "agents", frozenset({"here"}))
    assert left.chains == ()
    assert f"-X {MASQ}" not in left.removal()


def test_a_foreign_rule_with_our_comment_takes_no_chain_of_others_along() -> None:
    text = saved(f"-A POSTROUTING {comment('agents', 'gone')} -j KUBE-POSTROUTING\n")
    (left,) = left_by_unknown(text, "agents", frozenset())
    assert left.chains == ()


FORWARD = (
    "-A FORWARD -m comment --comment \"CNI firewall plugin rules\" -j CNI-FORWARD\n"
    "-A CNI-FORWARD -m comment --comment \"CNI firewall plugin admin overrides\" -j CNI-ADMIN\n"
    "-A CNI-FORWARD -d 10.77.0.2/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
    "-A CNI-FORWARD -s 10.77.0.2/32 -j ACCEPT\n"
    "-A CNI-FORWARD -s 10.77.0.3/32 -j ACCEPT\n"
    "-A CNI-FORWARD -s 10.99.0.3/32 -j ACCEPT\n"
    "-A CNI-FORWARD -s 10.77.0.0/24 -j ACCEPT\n"
    "-A CNI-FORWARD -s 10.77.0.4/32 -p tcp -j ACCEPT\n"
    "-A CNI-ADMIN -s 10.77.0.5/32 -j ACCEPT\n"
)  # fmt: skip


def test_rules_without_a_name_are_told_by_an_address_of_ours_that_nobody_has() -> None:
    lines = FORWARD.splitlines()
    assert left_for_addresses(saved(FORWARD, table="filter"), SUBNETS, frozenset({"10.77.0.3"})) == [
        LeftRules("filter", "10.77.0.2", (lines[2], lines[3]))
    ]
    assert left_for_addresses(saved(FORWARD, table="nat"), SUBNETS, frozenset()) == []


def test_the_same_over_ipv6() -> None:
    text = saved("-A CNI-FORWARD -s fd77::2/128 -j ACCEPT\n-A CNI-FORWARD -s fd78::2/128 -j ACCEPT\n", table="filter")
    assert [left.owner for left in left_for_addresses(text, SUBNETS, frozenset())] == ["fd77::2"]
    assert left_for_addresses(text, SUBNETS, frozenset({"fd77::2"})) == []


def test_a_mac_of_zeros_or_of_a_group_is_not_usable() -> None:
    usable = {mac: Bridge("br0", mac, ()).has_a_usable_mac for mac in (
        "00:00:00:00:00:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "", "02:00:00:00:00:00", "0a:58:0a:4d:00:01",
    )}  # fmt: skip
    assert [mac for mac, good in usable.items() if good] == ["02:00:00:00:00:00", "0a:58:0a:4d:00:01"]


def test_a_made_mac_is_local_and_of_one_host() -> None:
    assert local_mac(b"\xff" * 6) == "fe:ff:ff:ff:ff:ff"
    assert local_mac(b"\x00" * 6) == "02:00:00:00:00:00"
