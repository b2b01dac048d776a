"""The firewall of one network as nftables text: wanted state in, `nft -f` input out. Pure; called by `firewall`.

Two tables of the same name, because what one port of a bridge sends to another passes the hooks of the bridge family
alone (unless br_netfilter is on), and what is routed passes those of the inet family (nft(8), "ADDRESS FAMILIES").

- bridge/origin: a member's port lets through only the member's own MAC and addresses, in ARP and neighbour discovery too.
- bridge/forward and inet/forward: members of one namespace reach each other, others only in allowed pairs; a port of
  the bridge that is no member's reaches nobody, as nothing vouches for its addresses.
- inet/forward: nobody reaches the metadata addresses, but DNS on one that the node asks itself. inet/input: nobody
  reaches the node but on its open ports.
- inet/postrouting: what leaves the network's subnets carries the node's address.

One runtime is a few set elements, whatever the number of others: a verdict map leads from a source to the chain of its
namespace, and that chain has a set of the addresses of the namespace. A packet costs three set lookups.
Marks are left alone: other software on the node, kube-proxy for one, has its own meanings for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from enum import StrEnum
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

from perdure.api.names import NamespaceUid
from perdure.network.rules import RESOLVER, Member, NetworkRules, NodePort, Subnet

TEMPLATE = NamespaceUid("template")
"""A namespace that nobody has: `skeleton` can show how a namespace's chain looks."""


class Family(StrEnum):
    BRIDGE = "bridge"
    INET = "inet"


class Element(NamedTuple):
    """An element of a set, or of a verdict map where it has a chain to go to. A tuple, as there are tens of thousands."""

    family: Family
    collection: str
    key: tuple[str, ...]
    chain: str = ""


def namespace_chain(namespace: NamespaceUid) -> str:
    """The chain of a namespace; its sets have the same name with `-4` and `-6` behind it."""
    return f"ns-{hashlib.sha256(namespace.encode()).hexdigest()[:16]}"


def replacement(rules: NetworkRules, namespaces: Collection[NamespaceUid], elements: Collection[Element]) -> str:
    """Everything anew, in one transaction. Connections live on: connection tracking is not a part of a table."""
    return removal(rules) + skeleton(rules, namespaces) + added(rules, elements)


def removal(rules: NetworkRules) -> str:
    """Both tables away, whether they are there or not."""
    return "".join(f"add table {family} {rules.table}\ndelete table {family} {rules.table}\n" for family in Family)


def skeleton(rules: NetworkRules, namespaces: Collection[NamespaceUid]) -> str:
    """Tables, chains and rules, with empty sets."""
    return (
        _BRIDGE.format(table=rules.table)
        + _inet(rules)
        + "".join(namespace_added(rules, namespace) for namespace in sorted(namespaces))
    )


def namespace_added(rules: NetworkRules, namespace: NamespaceUid) -> str:
    """A namespace's chain and sets; repeating it changes nothing."""
    chain = namespace_chain(namespace)
    lines = []
    for family in Family:
        at = f"{family} {rules.table} {chain}"
        lines += [
            f"add set {at}-4 {{ type ipv4_addr; }}",
            f"add set {at}-6 {{ type ipv6_addr; }}",
            f"add chain {at}",
            f"flush chain {at}",
            f"add rule {at} ip daddr @{chain}-4 accept",
            f"add rule {at} ip6 daddr @{chain}-6 accept",
            f"add rule {at} drop",
        ]
    return "\n".join(lines) + "\n"


def namespace_removed(rules: NetworkRules, namespace: NamespaceUid) -> str:
    """To follow the removal of the last element that leads to the chain."""
    chain = namespace_chain(namespace)
    return "".join(
        f"flush chain {at}\ndelete chain {at}\ndelete set {at}-4\ndelete set {at}-6\n"
        for at in (f"{family} {rules.table} {chain}" for family in Family)
    )


def added(rules: NetworkRules, elements: Iterable[Element]) -> str:
    return _elements("add", rules, elements)


def deleted(rules: NetworkRules, elements: Iterable[Element]) -> str:
    """Fails as a whole where one of them is not there."""
    return _elements("delete", rules, elements)


@lru_cache(maxsize=4096)
def elements_of(member: Member) -> frozenset[Element]:
    """What the presence of one member adds. Remembered, as each verification asks for everybody's."""
    chain = namespace_chain(member.namespace)
    bridge, port = Family.BRIDGE, member.port
    found = {Element(bridge, "ports", (port,)), Element(bridge, "macs", (port, member.mac))}
    for address in member.addresses:
        version = str(address.version)
        found.add(Element(bridge, f"senders{version}", (port, str(address))))
        for family in Family:
            found.add(Element(family, f"owners{version}", (str(address),), chain))
            found.add(Element(family, f"{chain}-{version}", (str(address),)))
    if any(address.version == 6 for address in member.addresses):
        found.add(Element(bridge, "senders6", (port, str(member.link_local))))
        for address in (*member.addresses, member.link_local):
            if address.version == 6:
                found.add(Element(bridge, "neighbours", (port, hex(int(address)))))
    return frozenset(found)


def elements_between(source: Member, target: Member) -> frozenset[Element]:
    """What an allowed pair adds while both are here."""
    return frozenset(
        Element(family, f"allowed{one.version}", (str(one), str(other)))
        for one in source.addresses
        for other in target.addresses
        if one.version == other.version
        for family in Family
    )


def _elements(verb: str, rules: NetworkRules, elements: Iterable[Element]) -> str:
    lines = []
    for (family, collection), group in groupby(sorted(elements), key=lambda one: (one.family, one.collection)):
        inside = ", ".join(_text(element) for element in group)
        lines.append(f"{verb} element {family} {rules.table} {collection} {{ {inside} }}\n")
    return "".join(lines)


_KEYED_BY_PORT = frozenset({"ports", "macs", "senders4", "senders6", "neighbours"})


def _text(element: Element) -> str:
    first, *rest = element.key
    key = " . ".join([f'"{first}"' if element.collection in _KEYED_BY_PORT else first, *rest])
    return f"{key} : goto {element.chain}" if element.chain else key


_COLLECTIONS = """
  set allowed4 {{ type ipv4_addr . ipv4_addr; }}
  set allowed6 {{ type ipv6_addr . ipv6_addr; }}
  map owners4 {{ type ipv4_addr : verdict; }}
  map owners6 {{ type ipv6_addr : verdict; }}
"""

_BRIDGE = (
    """
table bridge {table} {{
  set ports {{ type ifname; }}
  set macs {{ type ifname . ether_addr; }}
  set senders4 {{ type ifname . ipv4_addr; }}
  set senders6 {{ type ifname . ipv6_addr; }}
  set neighbours {{ typeof iifname . @th,64,128; }}
"""
    + _COLLECTIONS
    + """
  chain origin {{
    type filter hook prerouting priority -300; policy accept;
    iifname @ports goto own
  }}
  chain own {{
    iifname . ether saddr != @macs drop
    iifname . arp saddr ip @senders4 accept
    iifname . ip saddr @senders4 accept
    icmpv6 type {{ nd-router-advert, nd-redirect }} drop
    icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @neighbours drop
    iifname . ip6 saddr @senders6 accept
    ip6 saddr :: icmpv6 type {{ nd-neighbor-solicit, mld2-listener-report }} accept
    drop
  }}
  chain forward {{
    type filter hook forward priority -200; policy accept;
    iifname @ports goto between
    oifname @ports drop
  }}
  chain between {{
    ether type arp accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
    ip saddr . ip daddr @allowed4 accept
    ip6 saddr . ip6 daddr @allowed6 accept
    ip daddr . ip saddr @allowed4 tcp flags & (syn | ack) != syn accept
    ip6 daddr . ip6 saddr @allowed6 tcp flags & (syn | ack) != syn accept
    ip daddr . ip saddr @allowed4 meta l4proto != tcp accept
    ip6 daddr . ip6 saddr @allowed6 meta l4proto != tcp accept
    ip saddr vmap @owners4
    ip6 saddr vmap @owners6
    drop
  }}
}}
"""
)
"""The kernel has no connection tracking for bridges in every build (CONFIG_NF_CONNTRACK_BRIDGE): answers of an allowed
pair's target are told by their TCP flags, and other protocols may go both ways."""

_INET = (
    """
table inet {table} {{
"""
    + _COLLECTIONS
    + """
  chain forward {{
    type filter hook forward priority -10; policy accept;
    iifname "{bridge}" goto leaving
  }}
  chain leaving {{
{resolvers}
{unreachable}
    ct state established accept
    ct state related accept
{towards_members}
  }}
  chain between {{
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
    ip saddr . ip daddr @allowed4 accept
    ip6 saddr . ip6 daddr @allowed6 accept
    ip saddr vmap @owners4
    ip6 saddr vmap @owners6
    drop
  }}
  chain input {{
    type filter hook input priority -10; policy accept;
    iifname "{bridge}" goto node
  }}
  chain node {{
    ct state established accept
    ct state related accept
    meta l4proto icmp accept
    meta l4proto ipv6-icmp accept
{open_ports}
    drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
{masquerade}
  }}
}}
"""
)


def _inet(rules: NetworkRules) -> str:
    bridge = f'"{rules.bridge}"'
    masquerade, towards_members = [], []
    for word, version, multicast in (("ip", 4, "224.0.0.0/4"), ("ip6", 6, "ff00::/8")):
        own = _of_version(rules.subnets, version)
        if own:
            masquerade.append(
                f"oifname != {bridge} {word} saddr {{ {own} }} {word} daddr != {{ {own}, {multicast} }} masquerade"
            )
            towards_members.append(f"{word} daddr {{ {own} }} goto between")
    unreachable = [
        f"{word} daddr {{ {found} }} drop"
        for word, version in (("ip", 4), ("ip6", 6))
        if (found := _of_version(rules.unreachable, version))
    ]
    resolvers = [
        f"{word} daddr {{ {found} }} {_towards(RESOLVER)} accept"
        for word, version in (("ip", 4), ("ip6", 6))
        if (found := ", ".join(str(one) for one in rules.resolvers if one.version == version))
    ]
    return _INET.format(
        table=rules.table,
        bridge=rules.bridge,
        resolvers="\n".join(resolvers),
        unreachable="\n".join(unreachable),
        towards_members="\n".join(towards_members),
        open_ports=f"{_towards(rules.open_ports)} accept" if rules.open_ports else "",
        masquerade="\n".join(masquerade),
    )


def _towards(ports: Iterable[NodePort]) -> str:
    listed = ", ".join(f"{port.transport} . {port.number}" for port in sorted(ports))
    return f"meta l4proto . th dport {{ {listed} }}"


def _of_version(subnets: Iterable[Subnet], version: int) -> str:
    return ", ".join(str(subnet) for subnet in subnets if subnet.version == version)
