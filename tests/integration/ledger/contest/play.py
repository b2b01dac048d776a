"""A contest: processes that compete for the clean-ups of thousands of stopped runtimes on one ledger, while they are paused
for longer than their leases last, killed, and given wrong clocks. Played by `test_contest` and `hack/chaos ledger`.

What happened is judged by the witness (at the instant of each effect), by triggers in the ledger that note every write
under a fence that is not the newest, and by the rows and marks that are left.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psycopg
from psycopg.rows import DictRow
from tests.integration.ledger.contest.witness import Mark, Witness, connect
from tests.integration.ledger.contest.words import TTL_SECONDS

from perdure.ledger.database import Database
from perdure.ledger.migrate import migrate

PAUSE_SECONDS = 2 * TTL_SECONDS
BETWEEN_SECONDS = (0.5, 3.0)
PAUSED, KILLED = 0.5, 0.35
STALLED_SECONDS = 300.0
"""Far longer than anything here waits for anything: a wall clock that is five minutes slow is set again in seconds."""
PROGRESS_SECONDS = 10.0
SLEEPY = 0
"""The number of the holder whose monotonic clock does not go on in a pause."""
CHECKOUT = Path(__file__).parents[4]

_AUDIT = """
CREATE TABLE stale_writes (at timestamptz DEFAULT clock_timestamp(), what text, uid text, by text);
CREATE FUNCTION note_stale_operation() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM leases WHERE key = NEW.uid AND fence = NEW.fence) THEN
        INSERT INTO stale_writes (what, uid, by) VALUES (TG_OP || ' of an operation', NEW.uid, NEW.node_name);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER stale_intent AFTER INSERT ON operations FOR EACH ROW WHEN (NEW.fence IS NOT NULL)
    EXECUTE FUNCTION note_stale_operation();
CREATE TRIGGER stale_repetition AFTER UPDATE ON operations FOR EACH ROW WHEN (NEW.fence IS DISTINCT FROM OLD.fence)
    EXECUTE FUNCTION note_stale_operation();
CREATE FUNCTION note_stale_archive() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM leases JOIN operations ON operations.id = NEW.operation
                    WHERE leases.key = NEW.uid AND leases.holder = operations.node_name) THEN
        INSERT INTO stale_writes (what, uid, by) VALUES (TG_OP || ' of an archive', NEW.uid, NEW.operation);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER stale_archive AFTER INSERT OR UPDATE ON archives FOR EACH ROW EXECUTE FUNCTION note_stale_archive();
"""
_LEFT = """
SELECT (SELECT count(*) FROM stale_writes) AS stale_writes,
       (SELECT count(*) FROM operations WHERE finished_at IS NULL) AS open_intents,
       (SELECT count(*) FROM operations WHERE started_at IS NULL) AS ends_without_intent,
       ARRAY(SELECT id FROM operations WHERE outcome = 'success') AS succeeded,
       (SELECT count(*) FROM operations WHERE outcome = 'superseded') AS superseded,
       (SELECT count(*) FROM operations WHERE outcome NOT IN ('success', 'superseded')) AS others,
       (SELECT count(*) FROM (SELECT FROM operations GROUP BY installation, id HAVING count(*) > 1) AS twice) AS doubles,
       (SELECT max(fence) FROM leases) AS fences
"""


@dataclass(frozen=True, slots=True)
class Contest:
    """`cases`: lives in all. `directory`: for sockets (a short path), journals, marks and the holders' last words."""

    url: str
    directory: Path
    runtimes: int
    cases: int
    holders: int
    seed: int
    tell: Callable[[str], None] = lambda _: None


@dataclass(slots=True)
class Competitor:
    """One holder after another on the same state folder, as one node's agent after another."""

    contest: Contest
    number: int
    draw: random.Random
    witness: Witness

    @property
    def node(self) -> str:
        return f"node-{self.number}"

    async def live(self) -> None:
        """Until the last of them ends by itself, with nothing left to do. Raises AssertionError if it ends otherwise."""
        code: int | None = None
        while code != 0:
            self.witness.heard[self.node] = asyncio.Event()
            process = await self._start()
            tormenting = asyncio.create_task(self._torment(process))
            try:
                code = await process.wait()
            finally:
                tormenting.cancel()
                await asyncio.gather(tormenting, return_exceptions=True)
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            assert code in (0, -signal.SIGKILL), f"{self.node} ended with {code}:\n{self._words().read_text()[-4000:]}"

    async def _start(self) -> asyncio.subprocess.Process:
        directory = self.contest.directory
        arguments = {
            "socket": directory / "witness",
            "state": directory / self.node,
            "node": self.node,
            "url": self.contest.url,
            "seed": self.draw.randrange(2**32),
        }
        with self._words().open("ab") as words:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.integration.ledger.contest.holder",
                *(["--sleepy"] if self.number == SLEEPY else []),
                *(part for name, value in arguments.items() for part in (f"--{name}", str(value))),
                cwd=CHECKOUT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(("controller", "hack", "."))},
                stdout=words,
                stderr=words,
            )

    def _words(self) -> Path:
        return self.contest.directory / f"{self.node}.log"

    async def _torment(self, process: asyncio.subprocess.Process) -> None:
        await self.witness.heard[self.node].wait()
        while True:
            await asyncio.sleep(self.draw.uniform(*BETWEEN_SECONDS))
            fate = self.draw.random()
            if fate < PAUSED:
                process.send_signal(signal.SIGSTOP)
                try:
                    await asyncio.sleep(PAUSE_SECONDS)
                finally:
                    process.send_signal(signal.SIGCONT)
                self.witness.counts["pauses"] += 1
            elif fate < PAUSED + KILLED:
                process.kill()
                self.witness.counts["kills"] += 1
                return


async def play(contest: Contest) -> Counter[str]:
    """Play it to its end; what happened. Raises AssertionError for whatever must not have."""
    async with Database(contest.url) as database:
        await migrate(database)
    async with await connect(contest.url) as connection:
        await connection.execute(_AUDIT)
        return await _play(contest, connection)


async def _play(contest: Contest, connection: psycopg.AsyncConnection[DictRow]) -> Counter[str]:
    draw = random.Random(contest.seed)
    witness = Witness(contest.directory / "marks", connection, random.Random(draw.randrange(2**32)), contest.cases)
    for number in range(contest.runtimes):
        witness.stop_another(f"u{number}")
    server = await witness.serve(contest.directory / "witness")
    competitors = [
        Competitor(contest, number, random.Random(draw.randrange(2**32)), witness) for number in range(contest.holders)
    ]
    try:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(_watch(contest, witness))
            await asyncio.wait([group.create_task(competitor.live()) for competitor in competitors])
            watching.cancel()
    finally:
        server.close()
        await server.wait_closed()
    row = await (await connection.execute(_LEFT)).fetchone()
    assert row is not None
    _judge(contest, witness, row)
    return witness.counts + Counter(cases=witness.removed, superseded=row["superseded"], fences=row["fences"])


async def _watch(contest: Contest, witness: Witness) -> None:
    """Tell how far it is. Raises AssertionError when nothing gets on any more, and at the first defect."""
    removed, since = -1, asyncio.get_running_loop().time()
    while True:
        await asyncio.sleep(PROGRESS_SECONDS)
        counts = ", ".join(f"{number} {event}" for event, number in sorted(witness.counts.items()))
        contest.tell(f"    {witness.removed} of {contest.cases} cleaned up; {counts}")
        assert not witness.defects, "\n".join(witness.defects[:20])
        if witness.removed != removed:
            removed, since = witness.removed, asyncio.get_running_loop().time()
        waited = asyncio.get_running_loop().time() - since
        assert waited < STALLED_SECONDS, f"{removed} of {contest.cases} are cleaned up, and no other one is"


def _judge(contest: Contest, witness: Witness, row: DictRow) -> None:
    assert not witness.defects, "\n".join(witness.defects[:20])
    marks = [msgspec.json.decode(line, type=Mark) for line in witness.marks.read_bytes().splitlines()]
    twice = [at for at, times in Counter((mark.uid, mark.n) for mark in marks).items() if times > 1]
    assert not twice, f"cleaned up twice: {twice[:20]}"
    assert len(marks) == contest.cases
    for zero in ("stale_writes", "open_intents", "ends_without_intent", "others", "doubles"):
        assert row[zero] == 0, f"{zero}: {row[zero]}"
    operations = {mark.operation for mark in marks}
    assert len(operations) == contest.cases, "an operation had two effects"
    untold = operations - set(row["succeeded"])
    assert not untold, f"effects whose operation did not end as a success: {sorted(untold)[:20]}"
    late = sum(number for holder, number in witness.late.items() if holder != f"node-{SLEEPY}")
    assert late <= contest.cases / 100, f"{late} effects were called when their lease was no good any more"
