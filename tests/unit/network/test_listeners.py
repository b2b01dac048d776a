"""Whether somebody on this machine listens on a port: on any address, and for this transport."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from perdure.network.listeners import taken
from perdure.plan.world import HostPort

STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM


@contextmanager
def listening(kind: socket.SocketKind, address: str = "127.0.0.1") -> Iterator[int]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kind) as server:
        if family is socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.bind((address, 0))
        if kind is STREAM:
            server.listen()
        yield server.getsockname()[1]


def port(number: int, protocol: str) -> HostPort:
    return HostPort("game", protocol, 1, number)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
@pytest.mark.parametrize(("kind", "protocol"), [(STREAM, "TCP"), (DATAGRAM, "UDP")])
def test_a_listener_on_any_address_has_its_port(kind: socket.SocketKind, protocol: str, address: str) -> None:
    with listening(kind, address) as number:
        assert taken(port(number, protocol))
    assert not taken(port(number, protocol))


def test_the_other_transport_of_the_number_is_free() -> None:
    with listening(STREAM) as number:
        assert not taken(port(number, "UDP"))
    with listening(DATAGRAM) as number:
        assert not taken(port(number, "TCP"))


def test_a_connection_that_winds_down_does_not_keep_the_port_of_a_server_that_may_start_again() -> None:
    with socket.socket(socket.AF_INET, STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        number = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", number)) as client:
            accepted, _ = server.accept()
            accepted.close()  # whoever closes first is left in TIME_WAIT
            assert client.recv(1) == b""
    assert not taken(port(number, "TCP"))
