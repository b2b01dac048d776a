"""The TCP connections of one aiohttp session, known so that an event loop can be left with none of them open.

A TLS connection that is closed says goodbye and waits for the server's, for up to 30 s, and nothing in aiohttp can be
awaited for a response that was cut off (https://docs.aiohttp.org/en/stable/client_advanced.html#graceful-shutdown). A
loop that ends before leaves sockets behind. Used by the intake, whose loop ends with each life of kopf.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from aiohttp import AddrInfoType


class Connections:
    """Makes the sockets of a connector (`aiohttp.TCPConnector(socket_factory=connections.socket)`)."""

    def __init__(self) -> None:
        self._open: set[_Socket] = set()
        self._none_open = asyncio.Event()

    def socket(self, address: AddrInfoType) -> socket.socket:
        """One more, not connected yet. `address`: what `getaddrinfo` says."""
        family, kind, protocol, _, _ = address
        return _Socket(self, family, kind, protocol)

    async def end(self, seconds: float) -> bool:
        """Cut all of them, and wait until their owners have closed them; whether all were within `seconds`.

        An owner who reads is told of the end at once, whatever the server does.
        """
        for each in tuple(self._open):
            with suppress(OSError):  # not connected, or not any longer
                each.shutdown(socket.SHUT_RDWR)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._open:
                    self._none_open.clear()
                    await self._none_open.wait()
        return not self._open

    def opened(self, one: _Socket) -> None:
        self._open.add(one)

    def closed(self, one: _Socket) -> None:
        self._open.discard(one)
        if not self._open:
            self._none_open.set()


class _Socket(socket.socket):
    """Tells when it is closed."""

    def __init__(self, among: Connections, family: int, kind: int, protocol: int) -> None:
        super().__init__(family, kind, protocol)
        self._among = among
        among.opened(self)

    def close(self) -> None:
        super().close()
        self._among.closed(self)

    def detach(self) -> int:
        """uvloop takes the descriptor, to close it, when its transport is closed (handles/handle.pyx, `_close`)."""
        self._among.closed(self)
        return super().detach()
