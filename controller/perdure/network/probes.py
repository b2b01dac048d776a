"""Puts HTTP, TCP and UDP questions from inside a container's network namespace: the `NetworkProbes` port.

Only the socket is made in there, by a thread that enters the namespace and ends; it stays there however it is used, so
everything else is done in the event loop. So a probe works without an address that the node can reach, no rule of the
node's firewall is in its way, and, whatever a spec names, nothing but the container itself can be reached by it.

What is at the other end may do as it likes: the time is bounded by the caller's seconds, and what is read by constants.
Source of what counts as success: k8s.io/kubernetes pkg/probe (http, tcp).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from perdure import __version__
from perdure.api.probes import HttpGetAction, HttpScheme
from perdure.network import netns
from perdure.reconcile.ports.probing import Endpoint, ProbeOutcome, ProbeResult

HEAD_BYTES = 64 * 1024
"""Most that is read of an answer's head; of its body nothing is."""
LINE_BYTES = 8 * 1024
DATAGRAM_BYTES = 64 * 1024
REDIRECTS = 10
SHOWN = 200
"""Characters of what a server said that a message may quote."""

SUCCESS = ProbeResult(ProbeOutcome.SUCCESS)


class _NoSocket(OSError):
    """The namespace could not be entered."""


class _BadAnswer(Exception):
    """What came back is no success: no HTTP, more of it than anybody needs, or a status that says so."""


@dataclass(frozen=True, slots=True)
class _Head:
    status: int
    location: str = ""


class NamespaceProbes:
    """`perdure.reconcile.ports.probing.NetworkProbes`."""

    async def http(self, to: Endpoint, action: HttpGetAction, seconds: float) -> ProbeResult:
        return await _asked(f"GET {_shown(action.path)} on port {to.port}", to, seconds, self._http(to, action))

    async def tcp(self, to: Endpoint, seconds: float) -> ProbeResult:
        return await _asked(f"connecting to port {to.port}", to, seconds, self._tcp(to))

    async def udp(self, to: Endpoint, payload: bytes, seconds: float) -> ProbeResult:
        return await _asked(f"a datagram to port {to.port}", to, seconds, self._udp(to, payload))

    async def _tcp(self, to: Endpoint) -> ProbeResult:
        with await _connected(to, socket.SOCK_STREAM):
            return SUCCESS

    async def _udp(self, to: Endpoint, payload: bytes) -> ProbeResult:
        # Connected, so that only this port's answers are heard, and a refusal (ICMP) comes as an error.
        with await _connected(to, socket.SOCK_DGRAM) as asking:
            # Not sock_sendall: a datagram without bytes is one, too.
            asking.send(payload)
            await asyncio.get_running_loop().sock_recv(asking, DATAGRAM_BYTES)
            return SUCCESS

    # ------------------------------------------------------------------------------------------ HTTP

    async def _http(self, to: Endpoint, action: HttpGetAction) -> ProbeResult:
        """Redirects to the same place are followed, as kubelet does; one to anywhere else is an answer like any other."""
        origin = f"{action.scheme.lower()}://{_authority(to)}"
        url = f"{origin}{action.path}"
        for _ in range(REDIRECTS):
            parts = urlsplit(url)
            path = parts.path or "/"
            head = await _get(to, action, f"{path}?{parts.query}" if parts.query else path)
            if not 300 <= head.status < 400 or not head.location:
                break
            target = _within(origin, url, head.location)
            if target is None:
                break
            url = target
        else:
            raise _BadAnswer(f"it redirects more than {REDIRECTS} times")
        if 200 <= head.status < 400:
            return SUCCESS
        raise _BadAnswer(f"status {head.status}")


def _within(origin: str, url: str, location: str) -> str | None:
    """Where a redirect from `url` leads if that is at the same place; None: elsewhere, or to what is no address."""
    if not location.isascii() or not location.isprintable() or " " in location:
        return None
    try:
        target = urljoin(url, location)
        urlsplit(target)
    except ValueError:
        return None
    return target if f"{target}/".startswith(f"{origin}/") else None


async def _asked(doing: str, to: Endpoint, seconds: float, asking: Coroutine[Any, Any, ProbeResult]) -> ProbeResult:
    """What came of it in that time; `doing` begins what is said of a failure."""
    try:
        async with asyncio.timeout(seconds):
            return await asking
    except TimeoutError:
        return ProbeResult(ProbeOutcome.FAILURE, f"{doing}: no answer within {seconds:g} s", late=True)
    except _NoSocket as error:
        return ProbeResult(ProbeOutcome.UNKNOWN, f"cannot ask from inside {to.netns or 'its network'}: {_why(error)}")
    except _BadAnswer as error:
        return _failure(f"{doing}: {error}")
    except (OSError, EOFError) as error:
        return _failure(f"{doing}: {_why(error)}")


async def _get(to: Endpoint, action: HttpGetAction, path: str) -> _Head:
    tls = _tls() if action.scheme is HttpScheme.HTTPS else None
    connection = await _connected(to, socket.SOCK_STREAM)
    try:
        reader, writer = await asyncio.open_connection(
            sock=connection, ssl=tls, server_hostname=to.address if tls is not None else None, limit=LINE_BYTES
        )
    except BaseException:
        connection.close()
        raise
    try:
        writer.write(_request(to, action, path))
        await writer.drain()
        return await _head(reader)
    finally:
        # Not closed in good order: that would wait for the other side, which need not be polite.
        writer.transport.abort()


def _request(to: Endpoint, action: HttpGetAction, path: str) -> bytes:
    headers = {"host": _authority(to), "user-agent": f"perdure-probe/{__version__}", "accept": "*/*"}
    given = {header.name.lower() for header in action.http_headers}
    lines = [f"GET {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items() if name not in given]
    lines += [f"{header.name}: {header.value}" for header in action.http_headers if header.name.lower() != "connection"]
    return "\r\n".join([*lines, "connection: close", "", ""]).encode("latin-1", "replace")


async def _head(reader: asyncio.StreamReader) -> _Head:
    """The first head that is an answer: what only announces one (1xx) is passed over. Raises `_BadAnswer`, `EOFError`."""
    left = HEAD_BYTES
    while True:
        line = await _line(reader)
        left -= len(line)
        words = line.split(maxsplit=2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/") or len(words[1]) != 3 or not words[1].isdigit():
            raise _BadAnswer(f"the answer is no HTTP: {_shown(b' '.join(words).decode('latin-1'))}")
        status, location = int(words[1]), ""
        # Only a redirect needs more than the first line.
        while 100 <= status < 200 or 300 <= status < 400:
            if left < 0:
                raise _BadAnswer(f"the head of the answer is longer than {HEAD_BYTES} bytes")
            line = await _line(reader)
            left -= len(line)
            if not line.strip():
                break
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"location":
                location = value.strip().decode("latin-1")
        if not 100 <= status < 200:
            return _Head(status, location)


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        line = await reader.readline()
    except ValueError as error:
        raise _BadAnswer(f"a line of the answer is longer than {LINE_BYTES} bytes") from error
    if not line.endswith(b"\n"):
        raise EOFError("the connection ended before the answer did")
    return line


@cache
def _tls() -> ssl.SSLContext:
    """Whatever certificate: a probe asks whether it works, not who it is."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


# ---------------------------------------------------------------------------------------------- sockets


async def _connected(to: Endpoint, kind: socket.SocketKind) -> socket.socket:
    """A connected socket in the namespace. Raises `_NoSocket`, `OSError`."""
    made = await _socket(to, kind)
    try:
        await asyncio.get_running_loop().sock_connect(made, (to.address, to.port))
    except BaseException:
        made.close()
        raise
    return made


async def _socket(to: Endpoint, kind: socket.SocketKind) -> socket.socket:
    if not to.netns:
        raise _NoSocket(errno.ENOENT, "its network namespace is not there")
    loop = asyncio.get_running_loop()
    made: asyncio.Future[socket.socket] = loop.create_future()
    family = socket.AF_INET6 if ":" in to.address else socket.AF_INET

    def hand_over(found: socket.socket | OSError) -> None:
        if made.cancelled():
            if isinstance(found, socket.socket):
                found.close()
        elif isinstance(found, OSError):
            made.set_exception(_NoSocket(found.errno, found.strerror))
        else:
            made.set_result(found)

    def inside() -> None:
        """Runs in a thread of its own, which ends afterwards: setns(2) moves the calling thread alone."""
        found: socket.socket | OSError
        try:
            netns.enter(Path(to.netns))
            found = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        except OSError as error:
            found = error
        loop.call_soon_threadsafe(hand_over, found)

    threading.Thread(target=inside, name="probe-socket", daemon=True).start()
    return await made


# ---------------------------------------------------------------------------------------------- words


def _authority(to: Endpoint) -> str:
    return f"[{to.address}]:{to.port}" if ":" in to.address else f"{to.address}:{to.port}"


def _failure(message: str) -> ProbeResult:
    return ProbeResult(ProbeOutcome.FAILURE, message)


def _why(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nobody listens there"
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno) if error.errno > 0 else _shown(str(error))
    return _shown(str(error)) or type(error).__name__


def _shown(text: str) -> str:
    """A bit of what somebody else wrote, on one line."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)[:SHOWN]
