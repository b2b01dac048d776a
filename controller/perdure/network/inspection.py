"""A cheap look at what is attached, without calling a plugin: does the interface have its addresses and its way out.

Called by `upkeep` for all runtimes at once. Blocking: one thread enters one namespace after another (setns(2)) and ends.
"""

from __future__ import annotations

import fcntl
import re
import socket
import struct
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from perdure.api.names import Uid
from perdure.network import netns
from perdure.network.netns import IFF_UP, SIOCGIFFLAGS

_OF_THIS_THREAD = Path("/proc/thread-self/net")
_LOCAL = re.compile(r"\|-- (\S+)\n\s+/32 host LOCAL")
"""An address of the namespace's own in fib_trie."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What an attachment gave. `netns`: the path of its namespace; `ways_out`: versions of IP with a default route."""

    uid: Uid
    netns: Path
    interface: str
    addresses: tuple[str, ...]
    ways_out: tuple[int, ...] = ()


def damaged(expected: Iterable[Expected]) -> dict[Uid, str]:
    """What is wrong with each that is not as expected. A namespace that cannot be entered is left out: whether it is there
    is seen elsewhere."""
    found: dict[Uid, str] = {}
    visitor = threading.Thread(target=_visit, args=(tuple(expected), found), name="netns-inspection")
    visitor.start()
    visitor.join()
    return found


def _visit(expected: tuple[Expected, ...], found: dict[Uid, str]) -> None:
    """In a thread of its own, which ends in the last namespace: setns(2) moves the calling thread alone."""
    for one in expected:
        try:
            netns.enter(one.netns)
        except OSError:
            continue
        wrong = _wrong(one)
        if wrong:
            found[one.uid] = wrong


def _wrong(expected: Expected) -> str:
    """netdevice(7), in the calling thread's namespace."""
    interface = expected.interface
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        try:
            answer = fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16sh14x", interface.encode(), 0))
        except OSError:
            return f"interface {interface} is gone"
    if not struct.unpack_from("16sh", answer)[1] & IFF_UP:
        return f"interface {interface} is down"
    has = _addresses()
    for address in expected.addresses:
        if ip_address(address).packed not in has:
            return f"interface {interface} has lost address {address}"
    for version in expected.ways_out:
        if not _has_default_route(version, interface):
            return f"interface {interface} has lost the default route of IPv{version}"
    return ""


def _addresses() -> frozenset[bytes]:
    """All that are the namespace's own, in either version, packed. IPv6 may be switched off."""
    found = {ip_address(text).packed for text in _LOCAL.findall((_OF_THIS_THREAD / "fib_trie").read_text())}
    listed = _OF_THIS_THREAD / "if_inet6"
    if listed.exists():
        found |= {bytes.fromhex(line.split()[0]) for line in listed.read_text().splitlines()}
    return frozenset(found)


def _has_default_route(version: int, interface: str) -> bool:
    """Formats: net/ipv4/fib_trie.c, fib_route_seq_show; net/ipv6/route.c, rt6_info_route."""
    if version == 4:
        rows = (line.split() for line in (_OF_THIS_THREAD / "route").read_text().splitlines()[1:])
        return any(row[0] == interface and row[1] == "00000000" and row[7] == "00000000" for row in rows)
    listed = _OF_THIS_THREAD / "ipv6_route"
    lines = listed.read_text().splitlines() if listed.exists() else []
    return any(row[-1] == interface and row[0] == "0" * 32 and row[1] == "00" for row in map(str.split, lines))
