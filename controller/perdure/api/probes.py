"""Probes of a runtime: Kubernetes' field names and defaults, and `udpSocket` for what speaks nothing but datagrams.

`perdure.api.runtime` puts them into a spec. What each field means is said in the CRD.
"""

from __future__ import annotations

from enum import StrEnum

from perdure.api.struct import Struct


class ExecAction(Struct, frozen=True, kw_only=True):
    command: tuple[str, ...]


class HttpScheme(StrEnum):
    HTTP = "HTTP"
    HTTPS = "HTTPS"
    """Whoever answers is not verified, as for a Pod."""


class HttpHeader(Struct, frozen=True, kw_only=True):
    name: str
    value: str


class HttpGetAction(Struct, frozen=True, kw_only=True):
    port: str | int
    """A number, or the name of one of the runtime's ports; so for each action."""
    path: str = "/"
    scheme: HttpScheme = HttpScheme.HTTP
    http_headers: tuple[HttpHeader, ...] = ()


class TcpSocketAction(Struct, frozen=True, kw_only=True):
    port: str | int


class UdpSocketAction(Struct, frozen=True, kw_only=True):
    port: str | int
    payload: str | None = None
    """Base64 of the one datagram that is sent; None: an empty one."""


class Probe(Struct, frozen=True, kw_only=True):
    """One question, asked again and again. Exactly one action is set."""

    exec: ExecAction | None = None
    http_get: HttpGetAction | None = None
    tcp_socket: TcpSocketAction | None = None
    udp_socket: UdpSocketAction | None = None
    initial_delay_seconds: int = 0
    period_seconds: int = 10
    timeout_seconds: int = 1
    success_threshold: int = 1
    failure_threshold: int = 3
    termination_grace_period_seconds: int | None = None
    """None: the runtime's own; of startup and liveness probes only."""

    @property
    def port(self) -> str | int | None:
        """What it connects to; None for a command."""
        action = self.http_get or self.tcp_socket or self.udp_socket
        return action.port if action is not None else None
