"""PostgreSQL away, restarted, paused, refusing: what callers see, and that they need no restart."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
import traceback
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from tests.integration.ledger.samples import NAME_A, NODE_A, NODE_B, TTL, finished, ref, started

from perdure.api.names import InstallationId
from perdure.api.runtime import Restore
from perdure.ledger.agent import PostgresAgentLedger
from perdure.ledger.controller import PostgresControllerLedger
from perdure.ledger.database import Database, DatabaseSettings
from perdure.ledger.embedded import EmbeddedPostgres
from perdure.ledger.migrate import migrate
from perdure.plan.certainty import Present, Unknown
from perdure.reconcile.ports.errors import LedgerUnavailable, PortError, StaleFence
from perdure.reconcile.ports.journal import OperationRow
from perdure.reconcile.ports.ledger import Binding

HASTY = DatabaseSettings(connect_seconds=2.0, statement_seconds=1.0, deadline_seconds=3.0)
CLUSTER = InstallationId("cluster")
SLEEP = sql.SQL("SELECT pg_sleep(30)")
PID = sql.SQL("SELECT pg_backend_pid() AS pid")


@pytest.fixture
async def server(state_dir: Path) -> AsyncIterator[EmbeddedPostgres]:
    """A server of the test's own, to be treated badly."""
    postgres = EmbeddedPostgres(state_dir)
    await postgres.start()
    yield postgres
    await postgres.stop()


def agent(database: Database) -> PostgresAgentLedger:
    return PostgresAgentLedger(database, CLUSTER, NODE_A)


@pytest.mark.parametrize(
    "url",
    ["postgresql://user:s3cret@host:notaport/db?bad_option=1", "password=s3cret nonsense", "s3cret", "://s3cret"],
)
def test_a_url_that_cannot_be_read_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(LedgerUnavailable, match="reading the database URL") as caught:
        Database(url)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("url", ["", "  ", "postgresql://"])
def test_an_empty_url_is_refused(url: str) -> None:
    with pytest.raises(LedgerUnavailable, match="it is empty; give --database-url"):
        Database(url)


async def test_a_server_that_is_not_there_is_said_with_its_reason_and_without_the_password(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    async with Database(f"postgresql://user:s3cret@/perdure?host={tmp_path}", HASTY) as database:
        with pytest.raises(LedgerUnavailable, match=r"identity: no connection to PostgreSQL: .*No such file") as caught:
            await agent(database).identity()
        facts = await agent(database).facts(ref(), Restore())
    assert isinstance(facts, Unknown)
    assert "no connection to PostgreSQL" in facts.why
    told = "".join(traceback.format_exception(caught.value)) + caplog.text + "".join(capsys.readouterr())
    assert "s3cret" not in told


@pytest.mark.env
async def test_a_wrong_password_is_said_and_not_shown(
    server: EmbeddedPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    rules = server.data / "pg_hba.conf"
    rules.write_text("local all locked scram-sha-256\n" + rules.read_text())
    async with Database(server.url) as database:
        await database.write("making a role", sql.SQL("CREATE ROLE locked LOGIN PASSWORD 'right'"), {})
        await database.write("reloading", sql.SQL("SELECT pg_reload_conf()"), {})
    async with Database(server.url.replace("postgres@", "locked:s3cret@"), HASTY) as database:
        with pytest.raises(LedgerUnavailable, match='password authentication failed for user "locked"') as caught:
            await agent(database).identity()
    assert "s3cret" not in "".join(traceback.format_exception(caught.value)) + caplog.text


@pytest.mark.env
async def test_a_database_without_a_ledger_says_who_makes_it(database_url: str) -> None:
    async with Database(database_url) as database:
        with pytest.raises(LedgerUnavailable, match="the database has no ledger yet"):
            await agent(database).identity()


@pytest.mark.env
async def test_a_role_without_rights_is_told_what_it_lacks(server: EmbeddedPostgres) -> None:
    async with Database(server.url) as database:
        await migrate(database)
        await database.write("making a role", sql.SQL("CREATE ROLE reader LOGIN"), {})
    async with Database(server.url.replace("postgres@", "reader@")) as database:
        with pytest.raises(LedgerUnavailable, match=r"permission denied for table ledger_identity; grant the role"):
            await agent(database).identity()


@pytest.mark.env
async def test_an_agents_role_needs_no_right_to_delete(server: EmbeddedPostgres) -> None:
    async with Database(server.url) as database:
        await migrate(database)
        for statement in (
            "CREATE ROLE agent LOGIN",
            "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO agent",
            "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO agent",
        ):
            await database.write("granting", sql.SQL(statement), {})
    async with Database(server.url.replace("postgres@", "agent@")) as database:
        ledger = agent(database)
        lease = await ledger.acquire("key", TTL)
        await ledger.begin(started(ref()), NAME_A, lease)
        await ledger.finish(finished(ref(), snapshot_key="key-1"), NAME_A, lease, release=True)
        await ledger.release(lease)
        assert isinstance(await ledger.facts(ref(), Restore()), Present)


@pytest.mark.env
async def test_killed_backends_cost_no_error(database_url: str) -> None:
    async with Database(database_url, DatabaseSettings(connections=3)) as database:
        await migrate(database)
        ledger = agent(database)
        for _ in range(5):
            pids = {
                row["pid"]
                for row in await asyncio.gather(*(database.row("asking", PID, {}) for _ in range(6)))
                if row is not None
            }
            with psycopg.connect(database_url, autocommit=True) as other:
                for pid in pids:
                    other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
            await ledger.apply([started(ref()), finished(ref(), snapshot_key="key-1")], NAME_A)
        facts = await ledger.facts(ref(), Restore())
        assert isinstance(facts, Present)
        assert facts.it.data_seen == "key-1"


@pytest.mark.env
async def test_backends_that_are_killed_while_many_write_lose_and_double_nothing(database_url: str) -> None:
    async with Database(database_url) as database:
        await migrate(database)
        ledger = agent(database)
        writing = asyncio.Event()

        async def write(n: int) -> None:
            of = ref(f"uid-{n}")
            rows: list[OperationRow] = [started(of), finished(of, snapshot_key=f"key-{n}")]
            for _ in range(20):
                try:
                    await ledger.apply(rows, NAME_A)
                except LedgerUnavailable:
                    continue
                writing.set()
                return
            pytest.fail("the ledger did not come back")

        def kill() -> None:
            with psycopg.connect(database_url, autocommit=True) as other:
                other.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )

        async def kill_often() -> None:
            await writing.wait()
            for _ in range(10):
                await asyncio.to_thread(kill)

        async with asyncio.TaskGroup() as group:
            group.create_task(kill_often())
            for n in range(100):
                group.create_task(write(n))
        row = await database.row(
            "counting",
            sql.SQL(
                "SELECT (SELECT count(*) FROM operations WHERE finished_at IS NOT NULL AND started_at IS NOT NULL) AS n,"
                " (SELECT count(*) FROM runtimes WHERE version = 1) AS m"
            ),
            {},
        )
        assert row == {"n": 100, "m": 100}


@pytest.mark.env
async def test_a_restarted_server_is_used_again_without_a_new_process(server: EmbeddedPostgres) -> None:
    async with Database(server.url, HASTY) as database:
        await migrate(database)
        ledger = agent(database)
        before = await ledger.identity()
        await server.stop()
        with pytest.raises(LedgerUnavailable, match="no connection to PostgreSQL"):
            await ledger.identity()
        await server.start()
        async with asyncio.timeout(20):
            while True:
                try:
                    after = await ledger.identity()
                    break
                except LedgerUnavailable:
                    continue
        assert after == before


@pytest.mark.env
async def test_a_paused_server_is_an_error_in_time_and_works_again_when_it_goes_on(server: EmbeddedPostgres) -> None:
    postmaster = int((server.data / "postmaster.pid").read_text().splitlines()[0])
    async with Database(server.url, HASTY) as database:
        await migrate(database)
        ledger = agent(database)
        row = await database.row("asking", PID, {})
        assert row is not None
        stopped = [postmaster, *children_of(postmaster)]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(LedgerUnavailable):
                await ledger.identity()
            assert time.monotonic() - began < 2 * HASTY.deadline_seconds
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        async with asyncio.timeout(20):
            while isinstance(await ledger.facts(ref(), Restore()), Unknown):
                pass


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.env
async def test_a_statement_that_takes_too_long_is_ended_by_the_server(database_url: str) -> None:
    async with Database(database_url, HASTY) as database:
        with pytest.raises(LedgerUnavailable, match=r"dreaming: canceling statement due to statement timeout"):
            await database.write("dreaming", SLEEP, {})


@pytest.mark.env
async def test_a_write_that_waits_behind_a_takeover_is_refused(database_url: str) -> None:
    """The fence is checked on the row as it is when the write happens, not as it was when the write was sent."""
    async with Database(database_url) as database:
        await migrate(database)
        ledger = agent(database)
        lease = await ledger.acquire("key", TTL)
        with psycopg.connect(database_url) as other:
            other.execute("UPDATE leases SET holder = 'node-b', token = 'theirs', fence = fence + 1")
            begin = asyncio.create_task(ledger.begin(started(ref()), NAME_A, lease))
            async with asyncio.timeout(10):
                while not await database.row("looking for a waiter", WAITER, {}):
                    pass
            other.commit()
        with pytest.raises(StaleFence, match=r"beginning start of BotRuntime/team-a/bot: the lease key \(fence \d+\)"):
            await begin
        row = await database.row("counting", sql.SQL("SELECT count(*) AS n FROM operations"), {})
        assert row == {"n": 0}


WAITER = sql.SQL("SELECT 1 AS it FROM pg_locks WHERE NOT granted")


@pytest.mark.env
async def test_a_lease_ends_for_its_holder_no_later_than_for_the_database(database_url: str) -> None:
    async with Database(database_url) as database:
        await migrate(database)
        wall_minus_monotonic = time.time() - time.monotonic()
        lease = await agent(database).acquire("key", TTL)
        for _ in range(2):
            row = await database.row("asking", sql.SQL("SELECT extract(epoch FROM expires_at) AS at FROM leases"), {})
            assert row is not None
            assert lease.expires_at + wall_minus_monotonic <= float(row["at"]) + 0.005
            lease = await agent(database).renew(lease, 2 * TTL)


@pytest.mark.env
async def test_the_lease_of_a_dead_holder_is_somebody_elses_within_its_time_and_a_second(database_url: str) -> None:
    ttl = 1.5
    async with Database(database_url) as database:
        await migrate(database)
        other = PostgresAgentLedger(database, CLUSTER, NODE_B)
        began = time.monotonic()
        lease = await agent(database).acquire("key", ttl)  # and its holder is heard of no more
        async with asyncio.timeout(ttl + 1):
            while True:
                try:
                    taken = await other.acquire("key", ttl)
                    break
                except PortError:
                    continue
        assert time.monotonic() - began >= ttl
        assert taken.fence > lease.fence


@pytest.mark.env
async def test_installations_of_one_database_do_not_see_each_other(database_url: str) -> None:
    async with Database(database_url) as database:
        await migrate(database)
        here = agent(database)
        there = PostgresAgentLedger(database, InstallationId("another"), NODE_B)
        await here.apply([finished(ref(), snapshot_key="key-1")], NAME_A)
        lease = await here.acquire("key", TTL)
        assert (await there.acquire("key", TTL)).fence > lease.fence
        facts = await there.facts(ref(), Restore())
        assert isinstance(facts, Present)
        assert facts.it.data_seen is None
        bound = await PostgresControllerLedger(database, CLUSTER).bind(ref(), NAME_A, NODE_A, "image:1")
        assert bound == Binding(ref().uid, NAME_A, NODE_A)
        elsewhere = PostgresControllerLedger(database, InstallationId("another"))
        assert (await elsewhere.read(ref(), Restore())).binding is None
        with pytest.raises(StaleFence):
            await there.begin(started(ref()), NAME_A, lease)
