"""What holders and the witness say to each other over its socket: one request and one answer, JSON, a line each.

Clocks: `monotonic` and `boot` are the machine's own, the same for all processes; `wall` is what a holder believes.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TypeVar

import msgspec

A = TypeVar("A", bound=msgspec.Struct)

TTL_SECONDS = 2.0
"""Of a lease here: short, so that many run out."""
EFFECT_SECONDS = 0.4
LONGEST_LINE = 2**20
IMAGE, DIGEST, CHAIN = "example/image:1", "sha256:aa", "sha256:bb"


class Life(msgspec.Struct, frozen=True):
    """One generation of one runtime, as the engine shows it."""

    uid: str
    n: int
    ttl: str
    """Its `stoppedTTL`."""
    there: bool
    stopped_at: float | None = None
    """By the wall clock of the holder that noted it."""
    stopped_boot: float | None = None


class Lives(msgspec.Struct, frozen=True):
    lives: list[Life]
    over: bool
    """Nothing is left to be cleaned up, and nothing comes back."""


class Answer(msgspec.Struct, frozen=True):
    text: str


class AskCandidates(msgspec.Struct, frozen=True, tag="candidates"):
    """Some of those that are due, and some that are not: the same ones for everybody who asks."""

    holder: str
    clock_error: float


class AskLife(msgspec.Struct, frozen=True, tag="life"):
    uid: str


class NoteStopped(msgspec.Struct, frozen=True, tag="stopped"):
    uid: str
    n: int
    wall: float
    boot: float


class Export(msgspec.Struct, frozen=True, tag="export"):
    """Write the archive `sequence`; answered with its hash."""

    uid: str
    key: str
    sequence: int


class Verify(msgspec.Struct, frozen=True, tag="verify"):
    sequence: int
    sha256: str


class Remove(msgspec.Struct, frozen=True, tag="remove"):
    """The effect. As with gRPC, a call whose deadline is over is not carried out."""

    holder: str
    uid: str
    key: str
    operation: str
    fence: int
    until_monotonic: float


class Again(msgspec.Struct, frozen=True, tag="again"):
    """Its clean-up is done and told: it may run and stop once more."""

    uid: str
    n: int


Request = AskCandidates | AskLife | NoteStopped | Export | Verify | Remove | Again


async def ask(socket: Path, request: Request, answer: type[A]) -> A:
    """Raises OSError when the witness is gone."""
    reader, writer = await asyncio.open_unix_connection(socket, limit=LONGEST_LINE)
    try:
        writer.write(msgspec.json.encode(request) + b"\n")
        line = await reader.readline()
    finally:
        writer.close()
    if not line:
        raise ConnectionResetError(f"{socket}: the witness hung up")
    return msgspec.json.decode(line, type=answer)
