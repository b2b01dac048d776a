"""Whether somebody on the node already listens on a port. Blocking for microseconds; called by `cni_sandbox`."""

from __future__ import annotations

import errno
import socket

from perdure.plan.world import HostPort

_KINDS = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}


def taken(port: HostPort) -> bool:
    """Whether a program of the node has the port, on any address. Ports that lead into runtimes have no listener: the
    kernel rewrites packets to them, and they are not seen here. Raises `OSError` for what says nothing about that."""
    families = [(socket.AF_INET, "0.0.0.0")]
    if socket.has_ipv6:
        families.append((socket.AF_INET6, "::"))
    return any(_is_bound(family, _KINDS[port.protocol], address, port.host_port) for family, address in families)


def _is_bound(family: socket.AddressFamily, kind: socket.SocketKind, address: str, number: int) -> bool:
    try:
        with socket.socket(family, kind | socket.SOCK_CLOEXEC) as probe:
            if kind is socket.SOCK_STREAM:
                # Connections that wind down (TIME_WAIT) do not keep the port.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family is socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind((address, number))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return True
        if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            return False  # the node has no IPv6
        raise
    return False
