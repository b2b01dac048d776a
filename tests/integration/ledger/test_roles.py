"""What the roles of docs/ledger.md may not do; what they may is in the contract, which runs with them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg import sql
from tests.integration.ledger.roles import Roles, documented_roles
from tests.integration.ledger.samples import NAME_A, NODE_A, TTL, archived, finished, ref, started

from perdure.api.names import InstallationId
from perdure.api.runtime import Restore
from perdure.ledger import migrate as migrate_module
from perdure.ledger.agent import PostgresAgentLedger
from perdure.ledger.database import Database
from perdure.ledger.history import HistoryQuery, find_lives, read_history
from perdure.ledger.migrate import known_migrations, migrate
from perdure.ledger.months import keep_months
from perdure.ledger.overview import read_overview
from perdure.plan.certainty import Present
from perdure.plan.world import LedgerFacts
from perdure.reconcile.ports.errors import LedgerUnavailable

pytestmark = pytest.mark.env


@pytest.fixture
async def roles(database_url: str) -> AsyncIterator[Roles]:
    with documented_roles(database_url) as roles:
        async with Database(roles.controller) as owner:
            await migrate(owner)
        roles.grant()
        yield roles


async def refused(url: str, statement: str) -> None:
    async with Database(url) as database:
        with pytest.raises(LedgerUnavailable, match=r"permission denied|must be owner"):
            await database.write("trying", sql.SQL(statement), {})


@pytest.mark.parametrize(
    "table", ["operations", "runtimes", "archives", "leases", "ledger_identity", "ports", "bindings", "health_events"]
)
async def test_agents_and_readers_delete_and_drop_nothing(roles: Roles, table: str) -> None:
    for url in (roles.agent, roles.reader):
        await refused(url, f"DELETE FROM {table}")
        await refused(url, f"TRUNCATE {table}")
        await refused(url, f"DROP TABLE {table}")


async def test_nobody_changes_a_health_event(roles: Roles) -> None:
    for url in (roles.agent, roles.reader):
        await refused(url, "UPDATE health_events SET event = 'container_started'")


async def test_a_reader_reads_history_and_overview_and_writes_nothing(roles: Roles) -> None:
    async with Database(roles.agent) as database:
        ledger = PostgresAgentLedger(database, InstallationId("cluster"), NODE_A)
        await ledger.apply([started(ref()), finished(ref())], NAME_A)
    assert len(await read_history(roles.reader, HistoryQuery())) == 1
    assert len(await find_lives(roles.reader, "bot")) == 1
    assert (await read_overview(roles.reader)).runtimes[0].count == 1
    await refused(roles.reader, "UPDATE operations SET outcome = 'success'")


async def test_months_are_the_owners_to_make(roles: Roles) -> None:
    async with Database(roles.controller) as owner:
        await keep_months(owner, 90)
    async with Database(roles.agent) as agent:
        with pytest.raises(LedgerUnavailable, match=r"permission denied for table operation_months; grant the role"):
            await keep_months(agent, 90)


# What the page gave agents before they read `phase_edges` and `bindings`.
GRANTS_OF_THEN = """
GRANT SELECT ON ledger_identity, perdure_migrations TO {agent};
GRANT SELECT, INSERT, UPDATE ON runtimes, operations, leases, archives TO {agent};
GRANT SELECT, INSERT ON health_events TO {agent};
GRANT SELECT, UPDATE ON ports, port_ranges TO {agent};
GRANT USAGE, SELECT ON SEQUENCE fences, archive_sequences TO {agent};
"""


async def test_agents_of_an_upgraded_ledger_need_no_new_grant(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = known_migrations()
    with documented_roles(database_url) as roles:
        async with Database(roles.controller) as owner:
            monkeypatch.setattr(migrate_module, "known_migrations", lambda: every[:8])
            await migrate(owner)
            with psycopg.connect(roles.controller, autocommit=True) as connection:
                connection.execute(GRANTS_OF_THEN.format(agent=roles.names[1]).encode())
            monkeypatch.setattr(migrate_module, "known_migrations", lambda: every)
            await migrate(owner)
        async with Database(roles.agent) as database:
            ledger = PostgresAgentLedger(database, InstallationId("cluster"), NODE_A)
            await ledger.apply([started(ref()), finished(ref())], NAME_A)
            lease = await ledger.acquire("key", TTL)
            mine = await archived(ledger, ref(), lease, "1")
            facts = await ledger.facts(ref(), Restore())
            assert isinstance(facts, Present)
            assert facts.it == LedgerFacts(latest=mine, purgeable=(mine.sequence,))
            assert await ledger.spared(ref()) == frozenset()
            await ledger.mark_purging(ref(), mine.sequence, lease)
        await refused(roles.agent, "INSERT INTO bindings SELECT * FROM bindings")
        await refused(roles.reader, "SELECT FROM bindings")
