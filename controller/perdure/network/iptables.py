"""Rules and chains that CNI's plugins left in iptables for attachments that are no more. Pure: text in, text out.

The plugins bridge (ipMasq) and portmap name the network and the container in a comment; the rule leads to a chain of the
attachment's own (`CNI-` or `CNI-DN-` and a hash). The firewall plugin names nobody: its rules in CNI-FORWARD have an
address of the attachment, and exactly two forms (plugins/meta/firewall/iptables.go, getPrivChainRules).
Called by `sweeps`; the text is that of iptables-save(8), whose lines are returned as they are for iptables-restore(8).
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_interface

from perdure.network.rules import Subnet

_COMMENT = re.compile(r'--comment "(?:dnat )?name: \\"(?P<network>[^"\\]*)\\" id: \\"(?P<container>[^"\\]*)\\""')
_TARGET = re.compile(r" -j (?P<chain>CNI-(?:DN-)?[0-9a-f]{16,})$")
_FORWARD = re.compile(
    r"-A CNI-FORWARD (?:-d (?P<to>\S+) -m conntrack --ctstate RELATED,ESTABLISHED|-s (?P<of>\S+)) -j ACCEPT"
)


@dataclass(frozen=True, slots=True)
class LeftRules:
    """What one attachment left in one table."""

    table: str
    owner: str
    """Container id, or the address where the rules name nobody else."""
    rules: tuple[str, ...]
    """Lines `-A CHAIN …`, those that lead to `chains` among them."""
    chains: tuple[str, ...] = ()

    def removal(self) -> str:
        """For `iptables-restore --noflush`: one transaction, so nothing is half removed."""
        lines = [f"*{self.table}"]
        lines += [rule.replace("-A ", "-D ", 1) for rule in self.rules]
        lines += [f"-F {chain}" for chain in self.chains]
        lines += [f"-X {chain}" for chain in self.chains]
        return "\n".join([*lines, "COMMIT", ""])


def left_by_unknown(saved: str, network: str, known: Container[str]) -> list[LeftRules]:
    """What names `network` and a container that is not `known`. A chain that others lead to as well is not taken."""
    found = []
    for table, lines in _tables(saved):
        owned: dict[str, list[str]] = {}
        for line in lines:
            if (match := _COMMENT.search(line)) and match["network"] == network and match["container"] not in known:
                owned.setdefault(match["container"], []).append(line)
        found += [_left(table, owner, rules, lines) for owner, rules in owned.items()]
    return found


def left_for_addresses(saved: str, subnets: Sequence[Subnet], live: Container[str]) -> list[LeftRules]:
    """The firewall plugin's rules for one address within `subnets` that is not `live`."""
    found = []
    for table, lines in _tables(saved):
        if table != "filter":
            continue
        owned: dict[str, list[str]] = {}
        for line in lines:
            if (match := _FORWARD.fullmatch(line)) and (address := _single(match["to"] or match["of"], subnets)):
                owned.setdefault(address, []).append(line)
        found += [LeftRules(table, owner, tuple(rules)) for owner, rules in owned.items() if owner not in live]
    return found


def _left(table: str, owner: str, rules: list[str], lines: Sequence[str]) -> LeftRules:
    targets = {match["chain"] for rule in rules if (match := _TARGET.search(rule))}
    shared = {
        match["chain"]
        for line in lines
        if line not in rules and (match := _TARGET.search(line)) and match["chain"] in targets
    }
    chains = tuple(sorted(targets - shared))
    outside = tuple(rule for rule in rules if rule.split(" ", 2)[1] not in chains)
    return LeftRules(table, owner, outside, chains)


def _single(text: str, subnets: Sequence[Subnet]) -> str | None:
    interface = ip_interface(text)
    if interface.network.prefixlen != interface.max_prefixlen:
        return None
    inside = any(subnet.version == interface.version and interface.ip in subnet for subnet in subnets)
    return str(interface.ip) if inside else None


def _tables(saved: str) -> Iterator[tuple[str, list[str]]]:
    table, lines = "", list[str]()
    for line in saved.splitlines():
        if line.startswith("*"):
            table, lines = line[1:].strip(), []
        elif line.startswith("-A "):
            lines.append(line.rstrip())
        elif line.strip() == "COMMIT":
            yield table, lines
