"""A cheap look at what is attached, without calling a plugin: does the interface have its address, are the port rules there.

Called by `upkeep` for all runtimes at once. Blocking: one thread enters one namespace after another (setns(2)) and ends.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import threading
from collections.abc import Iterable
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from perdure.api.names import Uid
from perdure.network import netns
from perdure.network.netns import IFF_UP, SIOCGIFFLAGS

SIOCGIFADDR = 0x8915


def without_address(expected: Iterable[tuple[Uid, Path, str, str]]) -> dict[Uid, str]:
    """For each (uid, namespace, interface, first address) that is not as expected: what is wrong. A namespace that cannot
    be entered is left out: whether it is there is seen elsewhere."""
    found: dict[Uid, str] = {}
    visitor = threading.Thread(target=_visit, args=(tuple(expected), found), name="netns-inspection")
    visitor.start()
    visitor.join()
    return found


def _visit(expected: tuple[tuple[Uid, Path, str, str], ...], found: dict[Uid, str]) -> None:
    """In a thread of its own, which ends in the last namespace: setns(2) moves the calling thread alone."""
    for uid, path, interface, address in expected:
        try:
            netns.enter(path)
        except OSError:
            continue
        wrong = _wrong(interface, address)
        if wrong:
            found[uid] = wrong


def _wrong(interface: str, address: str) -> str:
    """netdevice(7), in the calling thread's namespace."""
    name = interface.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        try:
            answer = fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16sh14x", name, 0))
        except OSError:
            return f"interface {interface} is gone"
        if not struct.unpack_from("16sh", answer)[1] & IFF_UP:
            return f"interface {interface} is down"
        wanted = ip_address(address)
        has = _has_ipv4(control, name, wanted) if isinstance(wanted, IPv4Address) else _has_ipv6(wanted.packed.hex())
    return "" if has else f"interface {interface} has lost address {address}"


def _has_ipv4(control: socket.socket, name: bytes, wanted: IPv4Address) -> bool:
    try:
        answer = fcntl.ioctl(control, SIOCGIFADDR, struct.pack("16s16x", name))
    except OSError:
        return False
    return bytes(answer[20:24]) == wanted.packed


def _has_ipv6(wanted: str) -> bool:
    with open("/proc/thread-self/net/if_inet6") as lines:
        return any(line.startswith(wanted) for line in lines)
