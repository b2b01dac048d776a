"""Probes through the network, from inside a real namespace, at servers that behave and at servers that do not."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.api.probes import HttpGetAction, HttpHeader, HttpScheme
from perdure.network import netns
from perdure.network.probes import NamespaceProbes
from perdure.reconcile.ports.probing import Endpoint, ProbeOutcome, ProbeResult

pytestmark = pytest.mark.root

HERE = "127.0.0.1"
Serve = Callable[[socket.socket], None]
"""Talks to one connection, on a thread of its own."""


class Inside:
    """Servers in a namespace that has nothing but its loopback."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self._stack = stack
        self.heard: list[bytes] = []

    def new_socket(self, kind: socket.SocketKind, family: int = socket.AF_INET) -> socket.socket:
        made: list[socket.socket] = []

        def enter() -> None:
            netns.enter(self.path)
            made.append(socket.socket(family, kind))

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        return self._stack.enter_context(made[0])

    def tcp(self, serve: Serve, address: str = HERE) -> Endpoint:
        listener = self.new_socket(socket.SOCK_STREAM, socket.AF_INET6 if ":" in address else socket.AF_INET)
        listener.bind((address, 0))
        listener.listen(16)
        threading.Thread(target=self._accept, args=(listener, serve), daemon=True).start()
        return self.at(listener.getsockname()[1], address)

    def at(self, port: int, address: str = HERE) -> Endpoint:
        return Endpoint(str(self.path), address, port)

    def free_port(self, kind: socket.SocketKind) -> int:
        with self.new_socket(kind) as unused:
            unused.bind((HERE, 0))
            return int(unused.getsockname()[1])

    def _accept(self, listener: socket.socket, serve: Serve) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection, serve), daemon=True).start()

    def _talk(self, connection: socket.socket, serve: Serve) -> None:
        with connection:
            try:
                serve(connection)
            except OSError:
                return  # the probe had heard enough

    def answering(self, *answers: bytes) -> Serve:
        """Reads a request, then says one answer after the other."""

        def serve(connection: socket.socket) -> None:
            self.heard.append(connection.recv(65536))
            for answer in answers:
                connection.sendall(answer)

        return serve


@contextmanager
def _namespace(folder: Path) -> Iterator[Inside]:
    path = folder / "inside"
    netns.create(path)
    try:
        with ExitStack() as stack:
            yield Inside(path, stack)
    finally:
        netns.remove(path)


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    with _namespace(tmp_path) as found:
        yield found


def status(code: int, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {code} As It Is", *headers, "", "a body"]).encode()


async def get(to: Endpoint, path: str = "/", seconds: float = 5.0, **more: object) -> ProbeResult:
    action = HttpGetAction(port=to.port, path=path, **more)  # type: ignore[arg-type]
    return await NamespaceProbes().http(to, action, seconds)


def outcome(result: ProbeResult) -> str:
    return result.outcome.value


# ---------------------------------------------------------------------------------------------- HTTP


@pytest.mark.parametrize(
    ("code", "expected"),
    [(200, "success"), (204, "success"), (304, "success"), (399, "success"), (400, "failure"), (404, "failure"),
     (500, "failure"), (503, "failure"), (999, "failure")],
)  # fmt: skip
async def test_the_status_decides(inside: Inside, code: int, expected: str) -> None:
    result = await get(inside.tcp(inside.answering(status(code))), "/healthz?deep=1")
    assert outcome(result) == expected
    assert (str(code) in result.message) == (expected == "failure")
    assert inside.heard[0].startswith(b"GET /healthz?deep=1 HTTP/1.1\r\n")


async def test_headers_are_sent_and_replace_ours(inside: Inside) -> None:
    to = inside.tcp(inside.answering(status(200)))
    await get(to, http_headers=(HttpHeader(name="Host", value="game.example"), HttpHeader(name="X-A", value="b c")))
    await get(to)
    first, second = (heard.decode().split("\r\n") for heard in inside.heard)
    assert "Host: game.example" in first
    assert "X-A: b c" in first
    assert not any(line.startswith("host:") for line in first)
    assert f"host: {HERE}:{to.port}" in second
    assert any(line.startswith("user-agent: perdure-probe/") for line in second)


async def test_what_only_announces_an_answer_is_passed_over(inside: Inside) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    assert outcome(await get(inside.tcp(inside.answering(early, status(500))))) == "failure"
    assert outcome(await get(inside.tcp(inside.answering(early, status(200))))) == "success"


async def test_a_redirect_to_itself_is_followed_and_one_elsewhere_is_an_answer(inside: Inside) -> None:
    def serve(connection: socket.socket) -> None:
        line = connection.recv(65536).split(b"\r\n")[0]
        inside.heard.append(line)
        answers = {
            b"/here": status(302, "Location: /broken"),
            b"/broken": status(500),
            b"/absolute": status(302, f"Location: http://{HERE}:{to.port}/broken"),
            b"/away": status(302, "Location: http://169.254.169.254/latest/meta-data"),
            b"/port": status(302, f"Location: http://{HERE}:{to.port + 1}/"),
            b"/prefix": status(302, f"Location: http://{HERE}:{to.port}@169.254.169.254/"),
            b"/loop": status(302, "Location: /loop"),
            b"/nowhere": status(302),
            b"/lines": status(302, "Location: /a\tb"),
            b"/bracket": status(302, "Location: http://["),
            b"/no-address": status(302, "Location: //[x]/"),
        }
        connection.sendall(answers[line.split()[1]])

    to = inside.tcp(serve)
    assert outcome(await get(to, "/here")) == "failure"
    assert outcome(await get(to, "/absolute")) == "failure"
    for path in ("/away", "/port", "/prefix", "/nowhere", "/lines", "/bracket", "/no-address"):
        asked = len(inside.heard)
        assert outcome(await get(to, path)) == "success", path
        assert len(inside.heard) == asked + 1, "nobody else is asked"
    result = await get(to, "/loop")
    assert outcome(result) == "failure"
    assert "redirects more than 10 times" in result.message


@pytest.fixture
def nobody(tmp_path: Path) -> ssl.SSLContext:
    """A server whose certificate nobody signed."""
    files = [str(tmp_path / name) for name in ("key.pem", "cert.pem")]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=nobody"]
    subprocess.run([*made, "-keyout", files[0], "-out", files[1]], check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[1], files[0])
    return context


async def test_https_is_asked_without_looking_at_the_certificate(inside: Inside, nobody: ssl.SSLContext) -> None:
    def serve(connection: socket.socket) -> None:
        with nobody.wrap_socket(connection, server_side=True) as secure:
            inside.answering(status(200))(secure)

    to = inside.tcp(serve)
    assert outcome(await get(to, scheme=HttpScheme.HTTPS)) == "success"
    assert outcome(await get(inside.tcp(inside.answering(status(200))), scheme=HttpScheme.HTTPS)) == "failure"


def flood(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * 65536)


def endless_line(connection: socket.socket) -> None:
    connection.recv(65536)
    while True:
        connection.sendall(b"x" * 65536)


def endless_headers(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 302 Found\r\n")
    while True:
        connection.sendall(b"X-More: y\r\n" * 1000)


def endless_announcements(connection: socket.socket) -> None:
    connection.recv(65536)
    while True:
        connection.sendall(b"HTTP/1.1 100 " + b"x" * 8000 + b"\r\n\r\n")


def drip(connection: socket.socket) -> None:
    connection.recv(65536)
    for byte in b"HTTP/1.1 200 OK\r\n" * 100:
        connection.sendall(bytes([byte]))
        time.sleep(0.2)


def silent(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def hang_up(connection: socket.socket) -> None:
    connection.recv(65536)


@pytest.mark.parametrize(
    ("serve", "expected", "words"),
    [
        (flood, "success", ""),
        (endless_line, "failure", "longer than"),
        (endless_headers, "failure", "longer than"),
        (endless_announcements, "failure", "longer than"),
        (drip, "failure", "no answer within 1 s"),
        (silent, "failure", "no answer within 1 s"),
        (hang_up, "failure", "ended before the answer"),
        (Inside.answering(Inside(Path(), ExitStack()), b"SSH-2.0-x\r\n"), "failure", "no HTTP: SSH-2.0-x"),
        (Inside.answering(Inside(Path(), ExitStack()), b"HTTP/1.1 2000 OK\r\n"), "failure", "no HTTP"),
        (Inside.answering(Inside(Path(), ExitStack()), b"\x1b[31m\x00\xff\r\n"), "failure", "no HTTP"),
    ],
    ids=[
        "flood", "endless line", "endless headers", "endless announcements", "drip", "silent", "hang up", "ssh",
        "odd status", "control codes",
    ],
)  # fmt: skip
async def test_a_server_that_misbehaves_costs_its_time_and_no_more(
    inside: Inside, serve: Serve, expected: str, words: str
) -> None:
    began = time.monotonic()
    result = await get(inside.tcp(serve), seconds=1.0)
    assert time.monotonic() - began < 3
    assert outcome(result) == expected
    assert words in result.message
    assert len(result.message) < 1000
    assert result.message.isprintable()
    assert result.late == ("within" in result.message)


def _header(name: bytes, value: bytes) -> bytes:
    return name + b": " + value


STATUS_LINES = st.builds(
    lambda version, code, rest: version + b" " + code + rest,
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/", b"http/1.1", b"\xef\xbb\xbfHTTP/1.1"]),
    st.one_of(
        st.integers(100, 999).map(lambda code: b"%d" % code),
        st.sampled_from(
            [b"302", b"100", b"000", b"-30", b"+30", b"3_2", b"\xb2\xb3\xb9", "٣٠٢".encode(), b"30200000000"]
        ),
    ),
    st.binary(max_size=8),
)
PRINTABLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=12).map(str.encode)
LOCATIONS = st.one_of(
    st.binary(max_size=20),
    st.builds(
        bytes.__add__,
        st.sampled_from([b"", b"http://", b"//", b"http://[", b"//[::1", b"http://[v1.x]", b"//h:x", b"/", b"?", b"#"]),
        PRINTABLE,
    ),
)
HEADERS = st.one_of(
    st.builds(_header, st.sampled_from([b"Location", b"LOCATION ", b"\tlocation"]), LOCATIONS),
    st.builds(
        _header,
        st.sampled_from([b"Content-Length", b"Transfer-Encoding", b"Content-Encoding"]),
        st.sampled_from([b"-1", b"9" * 5000, b"0x10", b"chunked", "٣".encode(), b"", b"gzip\0"]),
    ),
    st.binary(max_size=20),
)
ANSWERS = st.one_of(
    st.binary(max_size=200),
    LOCATIONS.map(lambda location: status(302, "Location: ").replace(b"Location: ", b"Location: " + location)),
    st.builds(
        lambda line, headers, body: b"\r\n".join([line, *headers, b"", body]),
        STATUS_LINES,
        st.lists(HEADERS, max_size=4),
        st.binary(max_size=20),
    ),
)
"""Noise, and what looks like an answer until it is taken at its word."""


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("scheme", HttpScheme)
def test_whatever_a_server_says_is_a_verdict(
    inside: Inside, scheme: HttpScheme, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    said = b""

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(said)

    to = inside.tcp(serve)
    with asyncio.Runner(loop_factory=loop) as runner:

        @settings(max_examples=150, deadline=None)
        @given(ANSWERS)
        def hear(answer: bytes) -> None:
            nonlocal said
            said = answer
            result = runner.run(get(to, scheme=scheme))
            assert result.outcome is not ProbeOutcome.UNKNOWN
            assert not result.late
            assert result.message.isprintable()

        hear()


# ---------------------------------------------------------------------------------------------- TCP and UDP


async def test_tcp_opens_or_does_not(inside: Inside) -> None:
    probes = NamespaceProbes()
    assert outcome(await probes.tcp(inside.tcp(silent), 5)) == "success"
    refused = await probes.tcp(inside.at(inside.free_port(socket.SOCK_STREAM)), 5)
    assert (outcome(refused), refused.late) == ("failure", False)
    assert "nobody listens" in refused.message


async def test_a_listener_whose_queue_is_full_is_late(inside: Inside) -> None:
    listener = inside.new_socket(socket.SOCK_STREAM)
    listener.bind((HERE, 0))
    listener.listen(0)
    to = inside.at(listener.getsockname()[1])
    waiting = [inside.new_socket(socket.SOCK_STREAM) for _ in range(4)]
    for one in waiting:
        one.setblocking(False)
        one.connect_ex((HERE, to.port))
    result = await NamespaceProbes().tcp(to, 0.5)
    assert (outcome(result), result.late) == ("failure", True)


async def test_udp_asks_for_any_answer(inside: Inside) -> None:
    server = inside.new_socket(socket.SOCK_DGRAM)
    server.bind((HERE, 0))
    to = inside.at(server.getsockname()[1])

    def echo() -> None:
        while True:
            try:
                text, sender = server.recvfrom(65536)
            except OSError:
                return
            inside.heard.append(text)
            if text != b"silence":
                server.sendto(text, sender)

    threading.Thread(target=echo, daemon=True).start()
    probes = NamespaceProbes()
    assert outcome(await probes.udp(to, b"\xff\xff\xff\xffTSource", 5)) == "success"
    assert outcome(await probes.udp(to, b"", 5)) == "success", "an empty datagram is one, too"
    late = await probes.udp(to, b"silence", 0.5)
    assert (outcome(late), late.late) == ("failure", True)
    refused = await probes.udp(inside.at(inside.free_port(socket.SOCK_DGRAM)), b"x", 5)
    assert (outcome(refused), refused.late) == ("failure", False)
    assert "nobody listens" in refused.message
    assert inside.heard == [b"\xff\xff\xff\xffTSource", b"", b"silence"]


# ---------------------------------------------------------------------------------------------- the namespace


async def test_ipv6_is_asked_as_well(inside: Inside) -> None:
    assert outcome(await get(inside.tcp(inside.answering(status(200)), "::1"))) == "success"
    assert b"host: [::1]:" in inside.heard[0]


async def test_what_listens_on_the_node_is_not_reached(inside: Inside) -> None:
    with socket.create_server((HERE, 0)) as outside:
        assert outcome(await NamespaceProbes().tcp(inside.at(outside.getsockname()[1]), 2)) == "failure"


@pytest.mark.parametrize("path", ["", "/nonexistent/netns", "/etc/hostname"])
async def test_a_namespace_that_is_not_there_says_nothing_about_the_server(path: str) -> None:
    probes = NamespaceProbes()
    to = Endpoint(path, HERE, 80)
    for result in (await get(to), await probes.tcp(to, 2), await probes.udp(to, b"", 2)):
        assert result.outcome is ProbeOutcome.UNKNOWN
        assert result.message


def own_namespace() -> str:
    return str(Path("/proc/thread-self/ns/net").readlink())


async def test_the_thread_of_the_loop_stays_where_it_was(inside: Inside) -> None:
    before = own_namespace()
    results = await asyncio.gather(*(get(inside.tcp(inside.answering(status(200)))) for _ in range(20)))
    assert {outcome(result) for result in results} == {"success"}
    assert own_namespace() == before
