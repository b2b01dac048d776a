"""A dump of a real server, restored after more was done: agents notice, stale leases are refused, a person decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from tests.fakes.journal import FakeJournal
from tests.integration.ledger.roles import documented_sql
from tests.integration.ledger.samples import NAME_A, NODE_A, TTL, archived, finished, ref, schema_is_ours, started

from perdure.api.conditions import Reason
from perdure.api.names import InstallationId, Kind
from perdure.api.runtime import Restore
from perdure.ledger.agent import PostgresAgentLedger
from perdure.ledger.controller import PostgresControllerLedger
from perdure.ledger.database import Database
from perdure.ledger.history import HistoryQuery, read_history
from perdure.ledger.migrate import migrate
from perdure.ledger.months import keep_months
from perdure.plan.world import Op
from perdure.reconcile.guards import Guards
from perdure.reconcile.ports.errors import StaleFence
from perdure.reconcile.ports.ledger import Lease
from rig.postgres import programs

pytestmark = pytest.mark.env

CLUSTER = InstallationId("cluster")
HISTORY = HistoryQuery(Kind.BOT, "team-a", "bot")


@dataclass(frozen=True, slots=True)
class Restored:
    """A database as it was dumped; what an agent holds that went on with the first one."""

    url: str
    guards: Guards
    stale: Lease
    highest_fence: int
    highest_sequence: int


async def run(program: str, *arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        str(programs() / program), *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


@pytest.fixture
async def restored(database_url: str, tmp_path: Path) -> AsyncIterator[Restored]:
    dump = str(tmp_path / "perdure.dump")
    async with Database(database_url) as database:
        await migrate(database)
        ledger = PostgresAgentLedger(database, CLUSTER, NODE_A)
        await PostgresControllerLedger(database, CLUSTER).bind(ref(), NAME_A, NODE_A, "image:1")
        await archived(ledger, ref(), await ledger.acquire("key", TTL), "before")
        await ledger.apply([started(ref(), 1), finished(ref(), 1, snapshot_key="key-1")], NAME_A)
        await run("pg_dump", "--format=custom", f"--file={dump}", database_url)
        lost = await archived(ledger, ref(), await ledger.acquire("key", TTL), "after")
        await ledger.apply([started(ref(), 2)], NAME_A)
        stale = await ledger.acquire("key", TTL)
        guards = Guards(FakeJournal())
        await guards.check_ledger(await ledger.identity())
        assert guards.freeze is None
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    url = database_url.replace(f"/{name}", f"/{name}_restored")
    with psycopg.connect(database_url, autocommit=True) as server:
        server.execute(f'CREATE DATABASE "{name}_restored"'.encode())
        try:
            await run("pg_restore", "--exit-on-error", f"--dbname={url}", dump)
            yield Restored(url, guards, stale, stale.fence, lost.sequence)
        finally:
            server.execute(f'DROP DATABASE "{name}_restored" WITH (FORCE)'.encode())


async def test_an_agent_that_saw_more_touches_nothing(restored: Restored) -> None:
    async with Database(restored.url) as database:
        ledger = PostgresAgentLedger(database, CLUSTER, NODE_A)
        identity = await ledger.identity()
        assert identity.highest_fence < restored.highest_fence
        await restored.guards.check_ledger(identity)
    freeze = restored.guards.freeze
    assert freeze is not None
    assert freeze.reason is Reason.IDENTITY_CHANGED
    assert f"this node has seen {restored.highest_fence}" in freeze.message


async def test_a_lease_of_the_lost_time_is_worth_nothing_even_if_its_fence_is_given_out_again(
    restored: Restored,
) -> None:
    async with Database(restored.url) as database:
        ledger = PostgresAgentLedger(database, CLUSTER, NODE_A)
        with pytest.raises(StaleFence):
            await ledger.finish(finished(ref(), 2), NAME_A, restored.stale, release=True)
        while (lease := await ledger.acquire("key", TTL)).fence < restored.stale.fence:
            pass
        assert lease.fence == restored.stale.fence
        with pytest.raises(StaleFence):
            await ledger.begin(started(ref(), 3, op=Op.PURGE), NAME_A, restored.stale)
    assert [row.id for row in await read_history(restored.url, HISTORY)] == ["uid-1/1"], "nothing was written"


async def test_a_restored_ledger_is_whole_and_takes_rows(restored: Restored) -> None:
    async with Database(restored.url) as database:
        await database.run("looking at the schema", schema_is_ours)
        assert (await keep_months(database, 90)).dropped == ()
        ledger = PostgresAgentLedger(database, CLUSTER, NODE_A)
        await ledger.apply([finished(ref(), 1), started(ref(), 2), finished(ref(), 2)], NAME_A)
        rows = await read_history(restored.url, HISTORY)
        assert sorted((row.id, row.outcome) for row in rows) == [("uid-1/1", "success"), ("uid-1/2", "success")]
        bound = await PostgresControllerLedger(database, CLUSTER).read(ref(), Restore())
        assert bound.binding is not None
        assert bound.archive_known


async def test_a_person_who_says_how_far_it_had_come_ends_the_freeze(restored: Restored) -> None:
    statements = documented_sql("SELECT setval")
    for name in ("highest_fence", "highest_sequence"):
        statements = statements.replace(f":{name}", str(getattr(restored, name)))
    with psycopg.connect(restored.url, autocommit=True) as owner:
        owner.execute(statements.encode())
    async with Database(restored.url) as database:
        ledger = PostgresAgentLedger(database, CLUSTER, NODE_A)
        await restored.guards.check_ledger(await ledger.identity())
        assert restored.guards.freeze is None
        lease = await ledger.acquire("key", TTL)
        assert lease.fence > restored.highest_fence
        archive = await archived(ledger, ref(), lease, "new")
        assert archive.sequence > restored.highest_sequence
