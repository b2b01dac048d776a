"""The schema: made once by whoever is first, refused when it is newer or another."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from psycopg import sql
from structlog.testing import capture_logs
from tests.fakes.journal import FakeJournal
from tests.integration.ledger.samples import schema_is_ours

from perdure.api.names import InstallationId
from perdure.api.phases import EDGES, Phase
from perdure.ledger import migrate as migrate_module
from perdure.ledger.admission import Admission
from perdure.ledger.database import Database, DatabaseSettings
from perdure.ledger.identity import read_identity
from perdure.ledger.migrate import Migration, known_migrations, migrate
from perdure.reconcile.guards import Guards
from perdure.reconcile.ports.errors import LedgerUnavailable
from perdure.reconcile.ports.ledger import LedgerIdentity

pytestmark = pytest.mark.env

TABLES = sql.SQL("SELECT count(*) AS n FROM pg_tables WHERE schemaname = 'public'")
NEWER = sql.SQL("INSERT INTO perdure_migrations (version, name, sha256) VALUES (9999, 'later', 'x')")
VERSIONS = sql.SQL("SELECT version FROM perdure_migrations ORDER BY version")


async def test_processes_that_start_at_once_make_one_schema(database_url: str) -> None:
    databases = [Database(database_url) for _ in range(4)]
    for database in databases:
        await database.open()
    await asyncio.gather(*(migrate(database) for database in databases))
    identities = {(await read_identity(database, InstallationId("i"))).id for database in databases}
    versions = await databases[0].rows("listing", VERSIONS, {})
    for database in databases:
        await database.run("looking at the schema", schema_is_ours)
        await database.close()
    assert len(identities) == 1
    assert [row["version"] for row in versions] == [migration.version for migration in known_migrations()]


async def test_a_newer_schema_is_refused_and_left_alone(database_url: str) -> None:
    async with Database(database_url) as database:
        await migrate(database)
        await database.write("pretending to be newer", NEWER, {})
        for refused in (migrate(database), database.run("looking", schema_is_ours)):
            with pytest.raises(
                LedgerUnavailable, match=r"it is 9999, and this program knows \d+ at most; run the newer"
            ):
                await refused


async def test_a_migration_that_was_changed_is_refused(database_url: str) -> None:
    async with Database(database_url) as database:
        await migrate(database)
        await database.write("changing", sql.SQL("UPDATE perdure_migrations SET sha256 = 'x'"), {})
        with pytest.raises(LedgerUnavailable, match=r"migration 1 \(ledger\) was applied from another text"):
            await migrate(database)


async def test_an_agent_says_that_the_controller_must_come_first(database_url: str) -> None:
    async with Database(database_url) as database:
        with pytest.raises(LedgerUnavailable, match="migration 1 is not applied; start the controller"):
            await database.run("looking at the schema", schema_is_ours)


async def test_an_agent_uses_no_schema_but_its_own_and_goes_on_when_it_is_there(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    doing = r"reading the ledger's identity: "
    settings = DatabaseSettings(connections=1, connect_seconds=1.0)
    admission, every = Admission(InstallationId("i"), Guards(FakeJournal())), known_migrations()
    async with Database(database_url) as owner, Database(database_url, settings, admission) as agent:
        with pytest.raises(
            LedgerUnavailable,
            match=rf"{doing}.*the database has no ledger yet \(start the controller of this version first",
        ):
            await read_identity(agent, InstallationId("i"))
        monkeypatch.setattr(migrate_module, "known_migrations", lambda: every[:-1])
        await migrate(owner)
        monkeypatch.setattr(migrate_module, "known_migrations", lambda: every)
        await _told_sooner_or_later(agent, f"migration {len(every)} is not applied; start the controller")
        await migrate(owner)
        assert await _sooner_or_later(agent) == await read_identity(owner, InstallationId("i"))
    async with Database(database_url) as owner:
        await owner.write("pretending to be newer", NEWER, {})
        async with Database(database_url, settings, admission) as agent:
            with pytest.raises(LedgerUnavailable, match=f"{doing}.*it is 9999"):
                await read_identity(agent, InstallationId("i"))


async def _told_sooner_or_later(database: Database, why: str) -> None:
    """The pool connects by itself, with pauses: until then it is said why the last attempt failed."""
    async with asyncio.timeout(30):
        while True:
            with pytest.raises(LedgerUnavailable) as refused:
                await read_identity(database, InstallationId("i"))
            if why in str(refused.value):
                return


async def _sooner_or_later(database: Database) -> LedgerIdentity:
    async with asyncio.timeout(30):
        while True:
            try:
                return await read_identity(database, InstallationId("i"))
            except LedgerUnavailable:
                continue


APPLIED = sql.SQL("SELECT version, applied_at FROM perdure_migrations ORDER BY version")
SLEEPING = sql.SQL("SELECT 1 AS it FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()")


def and_also(text: str) -> tuple[Migration, ...]:
    """The migrations there are, and one more."""
    known = known_migrations()
    return (*known, Migration(known[-1].version + 1, "slow", text))


async def test_a_migration_may_take_longer_than_any_other_work(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DatabaseSettings(statement_seconds=0.5, deadline_seconds=1.0)
    every = and_also("SELECT pg_sleep(1.5)")
    async with Database(database_url, settings) as database:
        await migrate(database)
        monkeypatch.setattr(migrate_module, "known_migrations", lambda: every)
        with capture_logs() as told:
            await migrate(database)
        rows = await database.rows("listing", APPLIED, {})
        with pytest.raises(LedgerUnavailable, match="canceling statement due to statement timeout"):
            await database.row("sleeping", sql.SQL("SELECT pg_sleep(1.5)"), {})
    assert [row["version"] for row in rows] == [migration.version for migration in every]
    assert [(line["event"], line["version"]) for line in told] == [
        ("ledger_migrating", len(every)),
        ("ledger_migrated", len(every)),
    ]


async def test_a_migration_has_an_end_of_its_own(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Database(database_url) as database:
        await migrate(database)
        every = and_also("SELECT pg_sleep(60)")
        monkeypatch.setattr(migrate_module, "known_migrations", lambda: every)
        with pytest.raises(LedgerUnavailable, match="schema up to date: canceling statement due to statement timeout"):
            await migrate(database, 2.0)


async def test_who_is_ended_between_two_migrations_is_carried_on_by_the_next_one(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = and_also("CREATE TABLE half (); SELECT pg_sleep(600)"), and_also("CREATE TABLE half ()")
    async with Database(database_url) as database, Database(database_url) as another:
        monkeypatch.setattr(migrate_module, "known_migrations", lambda: slow)
        migrating = asyncio.create_task(migrate(database))
        async with asyncio.timeout(30):
            while not await another.row("looking", SLEEPING, {}):
                pass
        migrating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await migrating
        before = await another.rows("listing", APPLIED, {})
        assert [row["version"] for row in before] == [migration.version for migration in slow[:-1]]
        monkeypatch.setattr(migrate_module, "known_migrations", lambda: quick)
        await migrate(another)
        after = await another.rows("listing", APPLIED, {})
    assert after[:-1] == before, "nothing was applied again"
    assert after[-1]["version"] == len(quick)


async def test_a_migration_that_fails_leaves_nothing_behind(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    good = known_migrations()
    bad = replace(good[0], version=len(good) + 1, name="bad", text="CREATE TABLE half (); SELECT no_such_function();")
    async with Database(database_url) as database:
        await migrate(database)
        before = await database.row("counting", TABLES, {})
        monkeypatch.setattr(migrate_module, "known_migrations", lambda: (*good, bad))
        with pytest.raises(LedgerUnavailable, match="no_such_function"):
            await migrate(database)
        assert await database.row("counting", TABLES, {}) == before
        monkeypatch.setattr(migrate_module, "known_migrations", lambda: good)
        await migrate(database)
        await database.run("looking at the schema", schema_is_ours)


async def test_a_role_that_may_not_make_tables_is_told_so(database_url: str) -> None:
    role = f"reader_{database_url.split('/test_')[1][:8]}"
    async with Database(database_url) as owner:
        await owner.write("making a role", sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)), {})  # type: ignore[arg-type]
        try:
            async with Database(database_url.replace("postgres@", f"{role}@")) as database:
                with pytest.raises(LedgerUnavailable, match=r"permission denied for schema public; grant the role"):
                    await migrate(database)
        finally:
            await owner.write("dropping it", sql.SQL("DROP ROLE {}").format(sql.Identifier(role)), {})  # type: ignore[arg-type]


async def test_the_ledger_has_the_edges_of_the_table_of_phases(database_url: str) -> None:
    async with Database(database_url) as database:
        await migrate(database)
        rows = await database.rows("reading edges", sql.SQL("SELECT before, after FROM phase_edges"), {})
    found = {(row["before"], row["after"]) for row in rows}
    assert found == {(before.value, after.value) for before in Phase for after in EDGES[before]}
