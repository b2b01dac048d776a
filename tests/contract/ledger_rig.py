"""The ledgers that pass the contract: PostgreSQL and the fake of the crash matrix, as many processes on one as wanted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import pytest
from psycopg import sql
from tests.fakes.ledger import FakeAgentLedger, FakeControllerLedger, LedgerTables
from tests.integration.ledger.samples import NODE_A, TTL

from perdure.api.names import InstallationId, NodeId
from perdure.ledger.agent import PostgresAgentLedger
from perdure.ledger.controller import PostgresControllerLedger
from perdure.ledger.database import Database
from perdure.ledger.migrate import migrate
from perdure.reconcile.ports.ledger import AgentLedger, ControllerLedger

EXPIRE = sql.SQL("UPDATE leases SET expires_at = now() - interval '1 second'")


class Rig(Protocol):
    """One ledger, and as many processes on it as a test wants."""

    def agent(self, node: NodeId = NODE_A) -> AgentLedger: ...

    def controller(self) -> ControllerLedger: ...

    async def let_leases_run_out(self) -> None: ...


class PostgresRig:
    def __init__(self, database: Database) -> None:
        self._database = database

    def agent(self, node: NodeId = NODE_A) -> AgentLedger:
        return PostgresAgentLedger(self._database, InstallationId("cluster"), node)

    def controller(self) -> ControllerLedger:
        return PostgresControllerLedger(self._database, InstallationId("cluster"))

    async def let_leases_run_out(self) -> None:
        await self._database.write("expiring leases", EXPIRE, {})


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


@pytest.fixture(params=[pytest.param("postgres", marks=pytest.mark.env), "fake"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    if request.param == "fake":
        yield FakeRig()
        return
    async with Database(request.getfixturevalue("database_url")) as database:
        await migrate(database)
        yield PostgresRig(database)
