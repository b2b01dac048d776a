"""Rows on their way from a node's journal to a real server that is away, slow, full, or lost in the middle of a commit:
each is there exactly once in the end, and none is dropped meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from tests.integration.ledger.samples import NAME_A, NODE_A, finished, ref, started
from tests.integration.ledger.severing import Cut, Severing

from perdure.api.names import InstallationId
from perdure.journal.errors import JournalFailed
from perdure.journal.file import FileJournal, JournalSettings
from perdure.ledger.agent import PostgresAgentLedger
from perdure.ledger.database import Database, DatabaseSettings
from perdure.ledger.embedded import EmbeddedPostgres
from perdure.ledger.migrate import migrate
from perdure.reconcile.outbox import Outbox
from perdure.reconcile.ports.errors import LedgerUnavailable
from perdure.reconcile.ports.journal import OperationRow

pytestmark = pytest.mark.env

HASTY = DatabaseSettings(connect_seconds=2.0, statement_seconds=1.0, deadline_seconds=3.0)
CLUSTER = InstallationId("cluster")
SETTINGS = JournalSettings(reserve_bytes=0)
BACK_SECONDS = 30.0
_WHOLE = """
SELECT count(*), count(DISTINCT id), count(started_at), count(finished_at),
       (SELECT count(*) FROM runtimes WHERE version = 1) FROM operations
"""


@pytest.fixture
async def server(state_dir: Path) -> AsyncIterator[EmbeddedPostgres]:
    """A server of the test's own, with a ledger on it, to be treated badly."""
    postgres = EmbeddedPostgres(state_dir)
    await postgres.start()
    async with Database(postgres.url) as database:
        await migrate(database)
    yield postgres
    await postgres.stop()


def rows_of(n: int, message: str = "") -> tuple[OperationRow, OperationRow]:
    of = ref(f"uid-{n}")
    return started(of), finished(of, snapshot_key=f"key-{n}", message=message)


def outbox_of(journal: FileJournal, database: Database) -> Outbox:
    return Outbox(journal, PostgresAgentLedger(database, CLUSTER, NODE_A), NAME_A)


def assert_each_is_there_once(url: str, count: int) -> None:
    with psycopg.connect(url) as connection:
        row = connection.execute(_WHOLE).fetchone()
    assert row == (count,) * 5


async def until_sent(journal: FileJournal, outbox: Outbox) -> None:
    """Try as the agent does, until the ledger has all of it."""
    sending = asyncio.create_task(outbox.run())
    try:
        async with asyncio.timeout(BACK_SECONDS):
            while journal.unsent():
                await journal.commit()
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


# ---------------------------------------------------------------------------------------------- away


async def test_what_was_done_in_an_outage_is_written_once_by_whoever_opens_the_journal_next(
    server: EmbeddedPostgres, state_dir: Path
) -> None:
    await server.stop()
    journal = FileJournal.open(state_dir / "node", SETTINGS)
    for n in range(300):
        await journal.commit(rows=rows_of(n))
    async with Database(server.url, HASTY) as database:
        with pytest.raises(LedgerUnavailable):
            await outbox_of(journal, database).flush()
    assert len(journal.unsent()) == 600
    await journal.close()

    journal = FileJournal.open(state_dir / "node", SETTINGS)
    await server.start()
    async with Database(server.url, HASTY) as database:
        # Killed after a batch was written and before it was marked as sent: the whole batch comes again.
        await PostgresAgentLedger(database, CLUSTER, NODE_A).apply(journal.unsent()[:250], NAME_A)
        await until_sent(journal, outbox_of(journal, database))
    await journal.close()
    assert_each_is_there_once(server.url, 300)


async def test_a_full_journal_stops_new_work_and_an_emptied_one_takes_it(
    server: EmbeddedPostgres, state_dir: Path
) -> None:
    await server.stop()
    journal = FileJournal.open(state_dir / "node", JournalSettings(reserve_bytes=0, unsent_rows=20))
    for n in range(10):
        await journal.commit(rows=rows_of(n))
    with pytest.raises(JournalFailed, match=r"20 rows already wait for the ledger.*bring the ledger back"):
        await journal.commit(rows=rows_of(10))
    await server.start()
    async with Database(server.url, HASTY) as database:
        await until_sent(journal, outbox_of(journal, database))
        await journal.commit(rows=rows_of(10))
        await until_sent(journal, outbox_of(journal, database))
    await journal.close()
    assert_each_is_there_once(server.url, 11)


async def test_a_row_that_the_server_refuses_holds_up_no_other(server: EmbeddedPostgres, state_dir: Path) -> None:
    journal = FileJournal.open(state_dir / "node", SETTINGS)
    bad = finished(ref("uid-1"), at=1e15)
    for n in range(5):
        await journal.commit(rows=rows_of(n) if n != 1 else (started(ref("uid-1")), bad))
    async with Database(server.url, HASTY) as database:
        await outbox_of(journal, database).flush()
        assert (list(journal.refused()), list(journal.unsent())) == ([bad], [])
        row = await database.row(
            "counting", sql.SQL("SELECT count(*) AS n, count(finished_at) AS ended FROM operations"), {}
        )
        assert row == {"n": 5, "ended": 4}
    await journal.close()


# ---------------------------------------------------------------------------------------------- lost in the middle


@pytest.mark.parametrize("cut", list(Cut))
@pytest.mark.parametrize("operations", [1, 50])
async def test_a_commit_whose_answer_is_lost_is_one_row(
    server: EmbeddedPostgres, state_dir: Path, cut: Cut, operations: int
) -> None:
    """Was it committed? The client cannot know; it writes again, and it is there once."""
    folder = state_dir / "way"
    folder.mkdir()
    journal = FileJournal.open(state_dir / "node", SETTINGS)
    async with Severing(folder, server.socket_folder) as way:
        url = server.url.replace(str(server.socket_folder), str(folder))
        async with Database(url, DatabaseSettings(connections=1)) as database:
            outbox = outbox_of(journal, database)
            await journal.commit(rows=rows_of(0)[:1])
            await outbox.flush()
            for n in range(operations):
                await journal.commit(rows=rows_of(n)[1:] if n == 0 else rows_of(n))
            way.armed = cut
            await outbox.flush()
            assert way.severed == 1
    await journal.close()
    assert_each_is_there_once(server.url, operations)


async def test_a_server_that_crashes_in_the_middle_of_a_commit_has_it_once_when_it_is_back(
    server: EmbeddedPostgres, state_dir: Path
) -> None:
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS"
                           " 'BEGIN PERFORM pg_sleep(60); RETURN NULL; END'")  # fmt: skip
        connection.execute("CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON runtimes DEFERRABLE INITIALLY DEFERRED"
                           " FOR EACH ROW EXECUTE FUNCTION dawdle()")  # fmt: skip
    journal = FileJournal.open(state_dir / "node", SETTINGS)
    await journal.commit(rows=rows_of(0))
    async with Database(server.url, DatabaseSettings(connections=1)) as database:
        outbox = outbox_of(journal, database)
        flushing = asyncio.create_task(outbox.flush())
        os.kill(await asyncio.to_thread(committing_backend, server.url), signal.SIGKILL)
        with pytest.raises(LedgerUnavailable):
            await flushing
        assert len(journal.unsent()) == 2
        await asyncio.to_thread(drop_trigger, server.url)
        await until_sent(journal, outbox)
    await journal.close()
    assert_each_is_there_once(server.url, 1)


def committing_backend(url: str) -> int:
    """Waits until one is in the middle of a COMMIT."""
    with psycopg.connect(url, autocommit=True) as connection:
        while True:
            row = connection.execute("SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'").fetchone()
            if row is not None:
                return int(row[0])


def drop_trigger(url: str) -> None:
    """As soon as the server has recovered."""
    while True:
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("DROP TRIGGER slow_commit ON runtimes")
                return
        except psycopg.OperationalError:
            continue


# ---------------------------------------------------------------------------------------------- slow, busy, full


async def test_a_statement_that_waits_too_long_leaves_its_rows_in_the_journal(
    server: EmbeddedPostgres, state_dir: Path
) -> None:
    journal = FileJournal.open(state_dir / "node", SETTINGS)
    await journal.commit(rows=rows_of(0))
    async with Database(server.url, HASTY) as database:
        outbox = outbox_of(journal, database)
        with psycopg.connect(server.url) as other:
            other.execute("LOCK TABLE runtimes IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(LedgerUnavailable, match="canceling statement due to statement timeout"):
                await outbox.flush()
            assert len(journal.unsent()) == 2
        await outbox.flush()
    await journal.close()
    assert_each_is_there_once(server.url, 1)


async def test_a_pool_that_is_used_up_is_said_in_time_and_works_again_when_one_is_given_back(
    server: EmbeddedPostgres,
) -> None:
    settings = DatabaseSettings(connections=2, connect_seconds=1.0)
    async with Database(server.url, settings) as database:
        done, taken = asyncio.Event(), asyncio.Semaphore(0)

        async def hold(_connection: object) -> None:
            taken.release()
            await done.wait()

        holding = [asyncio.create_task(database.run("holding", hold)) for _ in range(2)]
        for _ in holding:
            await taken.acquire()
        ledger = PostgresAgentLedger(database, CLUSTER, NODE_A)
        with pytest.raises(LedgerUnavailable, match="all 2 connections of this process are in use"):
            await ledger.identity()
        done.set()
        await asyncio.gather(*holding)
        assert (await ledger.identity()).id


async def test_a_server_without_a_connection_left_is_named_as_the_cause(server: EmbeddedPostgres) -> None:
    async with Database(server.url) as database:
        await database.write("making a role", sql.SQL("CREATE ROLE lonely LOGIN CONNECTION LIMIT 1"), {})
    url = server.url.replace("postgres@", "lonely@")
    with psycopg.connect(url):
        async with Database(url, HASTY) as database:
            with pytest.raises(LedgerUnavailable, match='too many connections for role "lonely"'):
                await PostgresAgentLedger(database, CLUSTER, NODE_A).identity()


@pytest.fixture
def small_disk(state_dir: Path) -> Iterator[Path]:
    """Room for a server, and for little more."""
    disk = state_dir / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m,mode=0755", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.root
async def test_a_server_whose_disk_is_full_gets_every_row_once_there_is_room(small_disk: Path, tmp_path: Path) -> None:
    server = EmbeddedPostgres(small_disk)
    await server.start()
    try:
        async with Database(server.url) as database:
            await migrate(database)
        journal = FileJournal.open(tmp_path, SETTINGS)
        ballast = small_disk / "ballast"
        room = os.statvfs(small_disk)
        ballast.write_bytes(bytes(room.f_bavail * room.f_frsize - 2**20))
        async with Database(server.url, HASTY) as database:
            outbox = outbox_of(journal, database)
            count = await fill(journal, outbox)
            ballast.unlink()
            await server.start()  # it may have given up on a full disk
            await until_sent(journal, outbox)
        await journal.close()
        assert_each_is_there_once(server.url, count)
    finally:
        await server.stop()


async def fill(journal: FileJournal, outbox: Outbox) -> int:
    """Operations that were journalled until the server had no room for more, all of them kept."""
    for n in range(20_000):
        await journal.commit(rows=rows_of(n, "x" * 1000))
        if n % 50 == 0 and (why := await refusal(outbox)):
            assert "No space left on device" in why
            assert journal.unsent()
            return n + 1
    pytest.fail("the disk did not become full")


async def refusal(outbox: Outbox) -> str:
    """Why the ledger takes no rows; empty if it took them."""
    try:
        await outbox.flush()
    except LedgerUnavailable as error:
        return str(error)
    return ""
