"""What a probe's question needs of the node: whom it is put to, and the networks that it is put through.

Commands are run by the engine (`Engine.execute`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from perdure.api.probes import HttpGetAction


class ProbeOutcome(StrEnum):
    SUCCESS = "success"
    FAILURE = "failure"
    UNKNOWN = "unknown"
    """It could not be asked: that says nothing about the process, and counts neither way."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    outcome: ProbeOutcome
    message: str = ""
    """What was answered, or why there was no answer; a few hundred characters, for people."""
    late: bool = False
    """It used up its time."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A port inside a container's network namespace. Nothing outside of the namespace can be reached through it."""

    netns: str
    address: str
    port: int


class NetworkProbes(Protocol):
    """Puts one question from inside the container's own network namespace, as a neighbour process would.

    Each is done after `seconds`, whatever the other side does, and reads no more than it needs. Never raises what a
    server did. A namespace that cannot be entered is `UNKNOWN`."""

    async def http(self, to: Endpoint, action: HttpGetAction, seconds: float) -> ProbeResult: ...

    async def tcp(self, to: Endpoint, seconds: float) -> ProbeResult: ...

    async def udp(self, to: Endpoint, payload: bytes, seconds: float) -> ProbeResult: ...
