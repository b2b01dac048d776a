"""Who sees all: the engine and the store that the holders share, and a look at the ledger at the instant of every effect.

It is the one process that nothing happens to. What was done is appended to a file of marks, for the verdict afterwards.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import msgspec
import psycopg
from psycopg.rows import DictRow, dict_row
from tests.integration.ledger.contest.words import (
    LONGEST_LINE,
    Again,
    Answer,
    AskCandidates,
    AskLife,
    Export,
    Life,
    Lives,
    NoteStopped,
    Remove,
    Request,
    Verify,
)

from perdure.api.duration import parse_ttl

TTLS = ("0s", "50ms", "400ms", "1500ms", "4s", "9s")
CROWD, OFFERED = 300, 24
"""Of so many that stopped first, all holders are shown the same few at a time, so that they meet."""
CLOCK_GRAIN_SECONDS = 0.001

_GROUNDS = """
SELECT (SELECT to_jsonb(lease) || jsonb_build_object('good', lease.expires_at > clock_timestamp())
          FROM leases AS lease WHERE key = %(uid)s) AS lease,
       (SELECT to_jsonb(operation) FROM operations AS operation WHERE id = %(operation)s) AS operation,
       (SELECT sha256 FROM archives WHERE snapshot_key = %(key)s AND uid = %(uid)s AND state = 'verified'
         ORDER BY sequence DESC LIMIT 1) AS archived
"""


class Mark(msgspec.Struct, frozen=True):
    """An effect that was done."""

    uid: str
    n: int
    holder: str
    operation: str
    fence: int


@dataclass(slots=True)
class Generation:
    """A life with what nobody but the witness knows."""

    life: Life
    stopped_boot: float
    """When it truly stopped."""
    again: bool = False


@dataclass(slots=True)
class Witness:
    """`cases`: how many lives there are to be in all, over `runtimes` runtimes."""

    marks: Path
    database: psycopg.AsyncConnection[DictRow]
    draw: random.Random
    cases: int
    begun: int = 0
    removed: int = 0
    lives: dict[str, Generation] = field(default_factory=dict)
    standing: dict[str, None] = field(default_factory=dict)
    """Uids of those that are there, in the order in which they stopped."""
    stored: dict[int, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)
    """Calls that came after their deadline, by holder."""
    defects: list[str] = field(default_factory=list)
    heard: dict[str, asyncio.Event] = field(default_factory=dict)
    """Set when a holder asks for something to do."""
    _clock_errors: dict[str, float] = field(default_factory=dict)
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def over(self) -> bool:
        return self.removed == self.cases

    def stop_another(self, uid: str) -> None:
        """It ran, wrote, and stopped just now."""
        n = self.lives[uid].life.n + 1 if uid in self.lives else 1
        self.lives[uid] = Generation(Life(uid, n, self.draw.choice(TTLS), there=True), boot_now())
        self.standing[uid] = None
        self.begun += 1

    async def serve(self, socket: Path) -> asyncio.Server:
        return await asyncio.start_unix_server(self._answer, socket, limit=LONGEST_LINE, backlog=512)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if line := await reader.readline():
                answer = await self._do(msgspec.json.decode(line, type=Request))
                writer.write(msgspec.json.encode(answer) + b"\n")
                await writer.drain()
        except ConnectionError:
            self.counts["hung up"] += 1
        finally:
            writer.close()

    async def _do(self, request: Request) -> msgspec.Struct:
        match request:
            case AskCandidates():
                return self._candidates(request)
            case AskLife(uid):
                return self.lives[uid].life
            case NoteStopped(uid, n, wall, boot):
                generation = self.lives[uid]
                if generation.life.n == n and generation.life.stopped_at is None:
                    generation.life = msgspec.structs.replace(generation.life, stopped_at=wall, stopped_boot=boot)
                return Answer("noted")
            case Export(_, key, sequence):
                self.stored[sequence] = content_of(key)
                return Answer(self.stored[sequence])
            case Verify(sequence, sha256):
                return Answer("whole" if self.stored.get(sequence) == sha256 else "not there")
            case Again(uid, n):
                generation = self.lives[uid]
                if generation.life.n == n and not generation.life.there and self.begun < self.cases:
                    self.stop_another(uid)
                return Answer("done")
            case Remove():
                async with self._asking:
                    return Answer(await self._remove(request))

    def _candidates(self, request: AskCandidates) -> Lives:
        if self._clock_errors.get(request.holder, 0.0) != request.clock_error:
            self.counts["clock jumps"] += 1
            self._clock_errors[request.holder] = request.clock_error
        self.counts["looks"] += 1
        self.heard.setdefault(request.holder, asyncio.Event()).set()
        # For a while all holders are drawn to the same few.
        crowd = random.Random(int(time.monotonic() * 4))
        standing = list(islice(self.standing, CROWD))
        shown = crowd.sample(standing, min(OFFERED, len(standing)))
        self._bring_back()
        return Lives([self.lives[uid].life for uid in shown], self.over)

    def _bring_back(self) -> None:
        """Where the one that cleaned up was killed before it could say so."""
        if not self.standing and self.begun < self.cases:
            for uid in list(self.lives)[: self.cases - self.begun]:
                self.stop_another(uid)

    async def _remove(self, request: Remove) -> str:
        if time.monotonic() > request.until_monotonic:
            self.late[request.holder] += 1
            self.counts["calls after their deadline"] += 1
            return "late"
        uid, n = request.uid, int(request.key.rpartition("-")[2])
        generation = self.lives[uid]
        if generation.life.n != n or not generation.life.there:
            self.counts["calls for what is gone"] += 1
            return "gone"
        waited = boot_now() - generation.stopped_boot
        if waited < (parse_ttl(generation.life.ttl) or 0.0) - CLOCK_GRAIN_SECONDS:
            self._defect(request, f"early clean-up: after {waited:.3f} s, its TTL is {generation.life.ttl}")
        await self._check_grounds(request)
        generation.life = msgspec.structs.replace(generation.life, there=False)
        self.standing.pop(uid)
        self.removed += 1
        with self.marks.open("ab") as marks:
            mark = Mark(uid, n, request.holder, request.operation, request.fence)
            marks.write(msgspec.json.encode(mark) + b"\n")
        return "removed"

    async def _check_grounds(self, request: Remove) -> None:
        parameters = {"uid": request.uid, "operation": request.operation, "key": request.key}
        row = await (await self.database.execute(_GROUNDS, parameters)).fetchone()
        assert row is not None
        lease, operation = row["lease"] or {}, row["operation"] or {}
        if (lease.get("holder"), lease.get("fence"), lease.get("good")) != (request.holder, request.fence, True):
            self._defect(request, f"stale effect: the lease is {lease}")
        if not operation.get("started_at") or operation.get("finished_at") or operation.get("uid") != request.uid:
            self._defect(request, f"effect without an open intent: {operation}")
        if row["archived"] != content_of(request.key):
            self._defect(request, f"effect without an archive of what was there: {row['archived']}")

    def _defect(self, request: Remove, what: str) -> None:
        self.defects.append(f"{request.uid} {request.key} by {request.holder}, fence {request.fence}: {what}")


def content_of(key: str) -> str:
    """The hash of what is in a snapshot: it differs from one to the next."""
    return hashlib.sha256(key.encode()).hexdigest()


def boot_now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def connect(url: str) -> psycopg.AsyncConnection[DictRow]:
    return await psycopg.AsyncConnection.connect(url, autocommit=True, row_factory=dict_row)
