"""`perdure history --health` on a real PostgreSQL: what happened to containers, for people and for programs."""

from __future__ import annotations

import json

import pytest

from perdure.api.names import InstallationId, Kind, NamespaceUid, NodeId, NodeName, RuntimeRef, Uid
from perdure.cli.blocking import block_on
from perdure.cli.main import main
from perdure.ledger.agent import PostgresAgentLedger
from perdure.ledger.database import Database
from perdure.ledger.migrate import migrate
from perdure.plan.health import HealthKind, ProbeKind
from perdure.reconcile.ports.journal import HealthRow

pytestmark = pytest.mark.env

ADA = RuntimeRef(Kind.BOT, "shop", "ada", Uid("6c0d2a54-1"), NamespaceUid("ns-1"))
BOB = RuntimeRef(Kind.GAME, "shop", "bob", Uid("7c0d2a54-1"), NamespaceUid("ns-1"))
AT = 1777636800.0
"""2026-05-01 12:00:00 UTC."""
ROWS = [
    HealthRow("e1", ADA, HealthKind.STARTED, AT),
    HealthRow("e2", ADA, HealthKind.EXITED, AT + 60, code=137),
    HealthRow("e3", ADA, HealthKind.PROBE_FAILED, AT + 120, "status 500", ProbeKind.READINESS),
    HealthRow("e4", BOB, HealthKind.STARTED, AT + 180),
]


@pytest.fixture
def ledger_url(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    async def fill() -> None:
        async with Database(database_url) as database:
            await migrate(database)
            ledger = PostgresAgentLedger(database, InstallationId("cluster-1"), NodeId("id-n1"))
            await ledger.apply(ROWS, NodeName("n1"))

    block_on(fill())
    monkeypatch.setenv("PERDURE_DATABASE_URL", database_url)
    return database_url


@pytest.mark.usefixtures("ledger_url")
def test_what_happened_is_shown_newest_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "br/ada", "-n", "shop", "--health"]) == 0, capsys.readouterr().err
    _header, failed, exited, started = capsys.readouterr().out.splitlines()
    assert failed.split() == ["2026-05-01", "12:02:00Z", "6c0d2a54", "probe_failed", "readiness", "-", "status", "500"]
    assert exited.split()[3:] == ["container_exited", "-", "137"]
    assert started.split()[3:] == ["container_started", "-", "-"]


@pytest.mark.usefixtures("ledger_url")
def test_programs_get_every_column_and_filters_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "-n", "shop", "--health", "--since", "2026-05-01T12:01:30Z", "-o", "json"]) == 0
    bob, ada = json.loads(capsys.readouterr().out)
    assert (bob["event"], bob["name"], ada["probe"], ada["message"]) == (
        "container_started",
        "bob",
        "readiness",
        "status 500",
    )
    assert ada["happened_at"] == "2026-05-01T12:02:00Z"
    assert main(["history", "-A", "--health", "--limit", "1", "-o", "wide"]) == 0
    _header, newest = capsys.readouterr().out.splitlines()
    assert newest.split()[2:] == ["shop", "gr/bob", "7c0d2a54", "container_started", "-", "-", "n1"]


@pytest.mark.usefixtures("ledger_url")
def test_a_name_that_nobody_knows_and_flags_of_operations_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "br/eve", "--health"]) == 1
    assert "never heard of" in capsys.readouterr().err
    for flags in (["-f"], ["--op", "start"], ["--outcome", "failure"], ["--source", "kubectl"], ["--correlation", "1"]):
        assert main(["history", "-A", "--health", *flags]) == 2
        assert "--health does not go with" in capsys.readouterr().err
