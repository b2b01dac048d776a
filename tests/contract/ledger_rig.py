"""The ledgers that pass the contract: PostgreSQL (for its superuser, and for roles with the rights of docs/ledger.md) and
the fake of the crash matrix, as many processes on one as wanted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import pytest
from psycopg import sql
from tests.fakes.ledger import FakeAgentLedger, FakeControllerLedger, LedgerTables
from tests.integration.ledger.roles import documented_roles
from tests.integration.ledger.samples import NODE_A, TTL, schema_is_ours

from perdure.api.names import InstallationId, NodeId, OperationId, RuntimeRef
from perdure.api.phases import Phase
from perdure.ledger.agent import PostgresAgentLedger
from perdure.ledger.catalogue import archive_facts
from perdure.ledger.controller import PostgresControllerLedger
from perdure.ledger.database import Database
from perdure.ledger.migrate import migrate
from perdure.plan.world import ArchiveFacts
from perdure.reconcile.ports.ledger import AgentLedger, ControllerLedger

STATE = sql.SQL("SELECT actual_state, refused FROM runtimes WHERE uid = %(uid)s")
TROUBLE = sql.SQL("SELECT error_code, message, finished_at FROM operations WHERE id = %(id)s")
VERIFIED = sql.SQL("""
SELECT * FROM archives
 WHERE namespace_uid = %(namespace_uid)s AND namespace = %(namespace)s AND kind = %(kind)s AND name = %(name)s
   AND state = 'verified'
 ORDER BY sequence
""")
EXPIRE = sql.SQL("UPDATE leases SET expires_at = now() - interval '1 second'")

HEALTH_EVENTS = sql.SQL("SELECT uid, event, probe, exit_code, message FROM health_events ORDER BY happened_at")


class Rig(Protocol):
    """One ledger, and as many processes on it as a test wants."""

    def agent(self, node: NodeId = NODE_A) -> AgentLedger: ...

    def controller(self) -> ControllerLedger: ...

    async def let_leases_run_out(self) -> None: ...

    async def health_events(self) -> Sequence[tuple[str, str, str | None, int | None, str | None]]:
        """(uid, event, probe, exit code, message) of every row, by when it happened."""

    async def archives(self, ref: RuntimeRef) -> Sequence[ArchiveFacts]:
        """Verified ones of its identity, oldest first."""

    async def state(self, ref: RuntimeRef) -> tuple[Phase | None, int]:
        """What the ledger has as a runtime's state, and how many moves it refused."""

    async def trouble(self, operation: OperationId) -> tuple[str, str, bool]:
        """Error code and message of an operation, and whether it is over; empty where there is none."""


class PostgresRig:
    """`database` is the controller's; agents use the same or one of their own role."""

    def __init__(self, database: Database, agents: Database | None = None) -> None:
        self._database = database
        self._agents = agents or database

    def agent(self, node: NodeId = NODE_A) -> AgentLedger:
        return PostgresAgentLedger(self._agents, InstallationId("cluster"), node)

    def controller(self) -> ControllerLedger:
        return PostgresControllerLedger(self._database, InstallationId("cluster"))

    async def let_leases_run_out(self) -> None:
        await self._database.write("expiring leases", EXPIRE, {})

    async def health_events(self) -> Sequence[tuple[str, str, str | None, int | None, str | None]]:
        rows = await self._database.rows("reading health events", HEALTH_EVENTS, {})
        return [(row["uid"], row["event"], row["probe"], row["exit_code"], row["message"]) for row in rows]

    async def archives(self, ref: RuntimeRef) -> Sequence[ArchiveFacts]:
        parameters = {key: getattr(ref, key) for key in ("namespace_uid", "namespace", "kind", "name")}
        rows = await self._database.rows("reading archives", VERIFIED, parameters)
        return tuple(map(archive_facts, rows))

    async def state(self, ref: RuntimeRef) -> tuple[Phase | None, int]:
        row = await self._database.row("reading a state", STATE, {"uid": ref.uid})
        assert row is not None
        return Phase(row["actual_state"]) if row["actual_state"] else None, row["refused"]

    async def trouble(self, operation: OperationId) -> tuple[str, str, bool]:
        row = await self._database.row("reading an operation", TROUBLE, {"id": operation})
        assert row is not None
        return row["error_code"] or "", row["message"] or "", row["finished_at"] is not None


class FakeRig:
    def __init__(self) -> None:
        self._now = 0.0
        self._tables = LedgerTables(now=lambda: self._now)

    def agent(self, node: NodeId = NODE_A) -> AgentLedger:
        return FakeAgentLedger(node, self._tables)

    def controller(self) -> ControllerLedger:
        return FakeControllerLedger(self._tables)

    async def let_leases_run_out(self) -> None:
        self._now += 10 * TTL

    async def health_events(self) -> Sequence[tuple[str, str, str | None, int | None, str | None]]:
        rows = sorted(self._tables.health_events.values(), key=lambda row: row.at)
        return [(row.ref.uid, row.kind.value, row.probe, row.code, row.message or None) for row in rows]

    async def archives(self, ref: RuntimeRef) -> Sequence[ArchiveFacts]:
        return tuple(entry.facts for entry in self._tables.verified(ref.identity))

    async def state(self, ref: RuntimeRef) -> tuple[Phase | None, int]:
        runtime = self._tables.runtime(ref)
        return runtime.state, runtime.refused

    async def trouble(self, operation: OperationId) -> tuple[str, str, bool]:
        entry = self._tables.operations[operation]
        return entry.error_code, entry.message, entry.finished_at is not None


@pytest.fixture(
    params=[
        pytest.param("postgres", marks=pytest.mark.env),
        pytest.param("postgres with roles", marks=pytest.mark.env),
        "fake",
    ]
)
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    if request.param == "fake":
        yield FakeRig()
        return
    url = request.getfixturevalue("database_url")
    if request.param == "postgres":
        async with Database(url) as database:
            await migrate(database)
            yield PostgresRig(database)
        return
    with documented_roles(url) as roles:
        async with Database(roles.controller) as controller, Database(roles.agent) as agent:
            await migrate(controller)
            roles.grant()
            await agent.run("looking at the schema", schema_is_ours)
            yield PostgresRig(controller, agent)
