"""Another database behind the same name, under a live pool and between two looks at the ledger's identity: an agent says
nothing to it, takes no lease there, and removes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from tests.fakes.archives import FakeArchives, FakeStore, StoredArchive
from tests.fakes.engine import FakeMachine
from tests.fakes.journal import FakeJournal, JournalDisk
from tests.integration.ledger.samples import NAME_A, NODE_A, TTL, archived, finished, ref, started, workspace

from perdure.api.conditions import Reason
from perdure.api.names import InstallationId, Uid
from perdure.api.runtime import Restore
from perdure.ledger.admission import Admission
from perdure.ledger.agent import PostgresAgentLedger
from perdure.ledger.database import Database, DatabaseSettings
from perdure.ledger.migrate import migrate
from perdure.plan.certainty import Unknown
from perdure.reconcile.guards import Guards
from perdure.reconcile.janitor import Janitor
from perdure.reconcile.leases import LeaseKeeper
from perdure.reconcile.outbox import Outbox
from perdure.reconcile.ports.archives import ArchiveRequest
from perdure.reconcile.ports.errors import LedgerChanged, LedgerUnavailable

pytestmark = pytest.mark.env

HASTY = DatabaseSettings(connect_seconds=2.0, statement_seconds=1.0, deadline_seconds=3.0)
CLUSTER = InstallationId("cluster")
UID = Uid("uid-1")


class Agent:
    """What an agent has to do with the ledger."""

    def __init__(self, database: Database, journal: FakeJournal, guards: Guards) -> None:
        self.database, self.journal, self.guards = database, journal, guards
        self.ledger = PostgresAgentLedger(database, CLUSTER, NODE_A)
        self.keeper = LeaseKeeper(self.ledger, guards)
        self.outbox = Outbox(journal, self.ledger, NAME_A)
        self.store = FakeStore()
        self.janitor = Janitor(self.ledger, FakeArchives(self.store, FakeMachine()), NODE_A, guards)

    async def leave_to_purge(self) -> None:
        """An archive that another node's purge left for this one to delete."""
        lease = await self.keeper.hold(UID)
        facts = await archived(self.ledger, ref(), lease, "op")
        request = ArchiveRequest(CLUSTER, ref(), facts.sequence, NODE_A, workspace(ref()))
        self.store.archives[facts.sequence] = StoredArchive(request, {"a": "b"}, {"a": "b"})
        await self.ledger.mark_purging(ref(), facts.sequence, lease)
        await self.keeper.release(UID)


@asynccontextmanager
async def agent_on(url: str, disk: JournalDisk) -> AsyncIterator[Agent]:
    journal = FakeJournal(disk)
    guards = Guards(journal)
    async with Database(url, HASTY, Admission(CLUSTER, guards)) as database:
        yield Agent(database, journal, guards)


@pytest.fixture
async def agent(database_url: str) -> AsyncIterator[Agent]:
    async with Database(database_url) as database:
        await migrate(database)
    async with agent_on(database_url, JournalDisk()) as it:
        yield it


def server_of(url: str) -> psycopg.Connection[tuple[object, ...]]:
    name = conninfo_to_dict(url)["dbname"]
    return psycopg.connect(url.replace(f"/{name}?", "/perdure?"), autocommit=True)


async def exchange(url: str) -> None:
    """An empty ledger in the place of the one at `url`: as a wrong restore, or a service that leads elsewhere, does."""
    name = str(conninfo_to_dict(url)["dbname"])

    def swap() -> None:
        with server_of(url) as server:
            server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
            server.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", (name,))
            server.execute(f'ALTER DATABASE "{name}" RENAME TO "{name}_ours"'.encode())
            server.execute(f'CREATE DATABASE "{name}"'.encode())

    await asyncio.to_thread(swap)
    async with Database(url) as database:
        await migrate(database)


@pytest.fixture(autouse=True)
def _nothing_is_left(database_url: str) -> Iterator[None]:
    yield
    name = conninfo_to_dict(database_url)["dbname"]
    with server_of(database_url) as server:
        server.execute(f'DROP DATABASE IF EXISTS "{name}_ours" WITH (FORCE)'.encode())


async def test_the_first_connection_is_looked_at_before_anything_is_said_on_it(agent: Agent) -> None:
    with pytest.raises(LedgerUnavailable, match="has not been checked yet"):
        await agent.keeper.hold(UID)
    await agent.ledger.apply([started(ref())], NAME_A)
    lease = await agent.keeper.hold(UID)
    memory = agent.journal.memory()
    assert memory.ledger
    assert memory.highest_fence == lease.fence


async def test_to_another_ledger_behind_the_name_nothing_is_said_and_nothing_is_removed(
    agent: Agent, database_url: str
) -> None:
    await agent.ledger.identity()
    await agent.leave_to_purge()
    held = await agent.keeper.hold(Uid("uid-2"))
    await exchange(database_url)

    # Due within the minute: nobody has looked at the ledger's identity since.
    for uid in (UID, Uid("uid-2"), UID):
        with pytest.raises(LedgerUnavailable):
            await agent.ledger.begin(started(ref()), NAME_A, held) if uid != UID else await agent.keeper.hold(uid)
    with pytest.raises(LedgerUnavailable):
        await agent.janitor.sweep()
    await agent.journal.commit(rows=(started(ref()), finished(ref(), snapshot_key="key-1")))
    with pytest.raises(LedgerUnavailable, match="the ledger is another one"):
        await agent.outbox.flush()
    facts = await agent.ledger.facts(ref(), Restore())

    assert isinstance(facts, Unknown), "that there is no data is not this ledger's word to give"
    assert agent.guards.freeze is not None
    assert agent.guards.freeze.reason is Reason.IDENTITY_CHANGED
    with pytest.raises(LedgerChanged, match="the ledger is another one"):
        await agent.keeper.hold(Uid("uid-2"))
    assert agent.store.archives
    assert len(agent.journal.unsent()) == 2
    async with Database(database_url) as database:
        row = await database.row(
            "counting",
            sql.SQL("SELECT (SELECT count(*) FROM leases) AS leases, (SELECT count(*) FROM operations) AS operations"),
            {},
        )
    assert row == {"leases": 0, "operations": 0}


async def test_after_a_restart_the_other_ledger_is_still_another(agent: Agent, database_url: str) -> None:
    await agent.ledger.identity()
    await exchange(database_url)
    async with agent_on(database_url, agent.journal.disk) as later:
        with pytest.raises(LedgerUnavailable, match="the ledger is another one"):
            await later.ledger.identity()
        with pytest.raises(LedgerChanged):
            await later.keeper.hold(UID)


async def test_an_older_state_in_place_of_the_ledger_gives_no_lease_although_no_connection_broke(
    agent: Agent, database_url: str
) -> None:
    await agent.ledger.identity()
    await agent.leave_to_purge()
    for n in range(5):
        held = await agent.keeper.hold(Uid(f"uid-{n}"))
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute("TRUNCATE leases")
        other.execute("SELECT setval('fences', 1)")
    with pytest.raises(LedgerChanged, match=f"this node has seen {held.fence}"):
        await agent.keeper.hold(Uid("due"))
    assert agent.guards.freeze is not None
    with pytest.raises(LedgerChanged):
        await agent.janitor.sweep()
    assert agent.store.archives

    async with agent_on(database_url, agent.journal.disk) as later:
        with pytest.raises(LedgerUnavailable, match="put back to an earlier day"):
            await later.ledger.identity()


async def test_a_ledger_that_was_told_how_far_it_had_come_is_trusted_again(agent: Agent, database_url: str) -> None:
    await agent.ledger.identity()
    held = await agent.keeper.hold(UID)
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute("UPDATE leases SET fence = fence - 1, expires_at = now()")
        other.execute("SELECT setval('fences', %s)", (held.fence,))
        other.execute("UPDATE leases SET fence = nextval('fences')")
    async with agent_on(database_url, agent.journal.disk) as later:
        await later.ledger.identity()
        assert (await later.keeper.hold(UID)).fence > held.fence


async def test_a_connection_costs_one_question_more_and_statements_none(agent: Agent, database_url: str) -> None:
    asked = 0

    class Counting(Admission):
        async def __call__(self, connection: object) -> None:
            nonlocal asked
            asked += 1
            await super().__call__(connection)  # type: ignore[arg-type]

    async with Database(database_url, DatabaseSettings(connections=1), Counting(CLUSTER, agent.guards)) as database:
        ledger = PostgresAgentLedger(database, CLUSTER, NODE_A)
        for n in range(20):
            lease = await ledger.acquire(f"key-{n}", TTL)
            await ledger.release(lease)
    assert asked == 1
