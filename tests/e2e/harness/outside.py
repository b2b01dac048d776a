"""Another host: a network namespace behind a link of its own, from which runtimes are reached through their node.

Called by the end-to-end tests of networks. Sockets are made inside it by a thread that enters it and then ends.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from perdure.network import netns
from rig.progress import run

Outcome = TypeVar("Outcome")

SUBNETS = ipaddress.ip_network("10.64.0.0/10")
ANSWER_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Outside:
    """``node``: the node's address on the link between the two; ``address``: this host's."""

    path: Path
    node: str
    address: str
    node_link: str

    def within(self, act: Callable[[], Outcome]) -> Outcome:
        """Do something in this host's network."""
        outcome: list[Outcome] = []
        failure: list[Exception] = []

        def inside() -> None:
            try:
                netns.enter(self.path)
                outcome.append(act())
            except (OSError, AssertionError) as error:
                failure.append(error)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return outcome[0]

    def connect(self, port: int) -> socket.socket:
        """A TCP connection to a port of the node; stays in this host's network. Raises ``OSError``."""
        return self.within(lambda: socket.create_connection((self.node, port), timeout=ANSWER_SECONDS))

    def get(self, port: int, path: str = "/") -> str:
        """What an HTTP server behind a port of the node answers, head and body. Raises ``OSError``."""
        with self.connect(port) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            return b"".join(iter(lambda: connection.recv(4096), b"")).decode()

    def udp(self, port: int, message: bytes) -> bytes:
        """What comes back for a datagram to a port of the node. Raises ``OSError``, a timeout included."""
        with self.within(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
            sender.settimeout(ANSWER_SECONDS)
            sender.sendto(message, (self.node, port))
            return sender.recvfrom(4096)[0]

    def listen(self) -> socket.socket:
        """A TCP server on a free port of this host."""
        return self.within(lambda: socket.create_server((self.address, 0)))


@contextmanager
def outside_host(folder: Path) -> Iterator[Outside]:
    """Made, connected, and taken away again. ``folder`` is where its namespace is named."""
    identifier = uuid.uuid4().hex[:8]
    path = folder / f"outside-{identifier}"
    inner, outer = f"pi{identifier}", f"po{identifier}"
    step = int(identifier, 16) % (2 ** (30 - SUBNETS.prefixlen))
    base = SUBNETS.network_address + step * 4
    node, address = str(base + 1), str(base + 2)
    netns.create(path)
    try:
        run(["ip", "link", "add", outer, "type", "veth", "peer", "name", inner], timeout=20)
        enter = ["nsenter", f"--net={path}"]
        run(["ip", "address", "add", f"{node}/30", "dev", outer], timeout=20)
        run(["ip", "link", "set", outer, "up"], timeout=20)
        # The namespace is told by its open file: ip(8) knows only those below /run/netns by name.
        descriptor = os.open(path, os.O_RDONLY)
        try:
            run(["ip", "link", "set", inner, "netns", f"/proc/{os.getpid()}/fd/{descriptor}"], timeout=20)
        finally:
            os.close(descriptor)
        run([*enter, "ip", "address", "add", f"{address}/30", "dev", inner], timeout=20)
        run([*enter, "ip", "link", "set", inner, "up"], timeout=20)
        run([*enter, "ip", "route", "add", "default", "via", node], timeout=20)
        yield Outside(path, node, address, outer)
    finally:
        if Path("/sys/class/net", outer).exists():
            run(["ip", "link", "delete", outer], timeout=20)
        netns.remove(path)
