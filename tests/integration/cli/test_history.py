"""`perdure history` on a real PostgreSQL: what an agent wrote is what a person reads."""

from __future__ import annotations

import json
import time

import pytest

from perdure.api.conditions import Reason
from perdure.api.names import InstallationId, Kind, NamespaceUid, NodeId, NodeName, OperationId, RuntimeRef, Uid
from perdure.api.phases import Phase
from perdure.cli.blocking import block_on
from perdure.cli.main import main
from perdure.ledger.agent import PostgresAgentLedger
from perdure.ledger.database import Database
from perdure.ledger.migrate import migrate
from perdure.plan.world import Op, Outcome, Source
from perdure.reconcile.ports.journal import OperationFinished, OperationRow, OperationStarted

pytestmark = pytest.mark.env

ADA = RuntimeRef(Kind.BOT, "shop", "ada", Uid("6c0d2a54-1"), NamespaceUid("ns-1"))
AT = 1777636800.0
"""2026-05-01 12:00:00 UTC."""


def rows() -> list[OperationRow]:
    start, preserve = OperationId("o1"), OperationId("o2")
    return [
        OperationStarted(start, ADA, Op.START, Source.KUBECTL, AT, None, "img:1"),
        OperationFinished(start, ADA, AT + 0.083, Outcome.SUCCESS, Phase.RUNNING),
        OperationStarted(preserve, ADA, Op.PRESERVE, Source.KUBECTL, AT + 60, Phase.RUNNING, "img:1"),
        OperationFinished(
            preserve, ADA, AT + 62, Outcome.FAILURE, Phase.STOPPED, Reason.STORE_FULL.value, "the store has no room"
        ),
    ]


@pytest.fixture
def ledger_url(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    async def fill() -> None:
        async with Database(database_url) as database:
            await migrate(database)
            ledger = PostgresAgentLedger(database, InstallationId("cluster-1"), NodeId("id-n1"))
            await ledger.apply(rows(), NodeName("n1"))

    block_on(fill())
    monkeypatch.setenv("PERDURE_DATABASE_URL", database_url)
    return database_url


@pytest.mark.usefixtures("ledger_url")
def test_what_was_done_is_shown_newest_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "br/ada", "-n", "shop"]) == 0, capsys.readouterr().err
    _header, preserve, start = capsys.readouterr().out.splitlines()
    assert preserve.split()[:8] == [
        *("2026-05-01", "12:01:00Z", "6c0d2a54", "preserve", "kubectl", "failure", "StoreFull", "2.0s")
    ]
    assert preserve.rstrip().endswith("the store has no room")
    assert start.split()[3:] == ["start", "kubectl", "success", "-", "83ms"]
    assert main(["history", "br/ada", "-n", "shop", "--limit", "1", "-o", "json"]) == 0
    (newest,) = json.loads(capsys.readouterr().out)
    assert (newest["id"], newest["before"], newest["after"]) == ("o2", "Running", "Stopped")


@pytest.mark.usefixtures("ledger_url")
def test_another_name_or_namespace_has_its_own_history(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["br/ada"], ["gr/ada", "-n", "shop"], ["br/bob", "-n", "shop"]):
        assert main(["history", *arguments]) == 0
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Nothing was ever done" in captured.err


def test_a_database_without_a_ledger_is_said(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERDURE_DATABASE_URL", database_url)
    assert main(["history", "br/ada"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "the database has no ledger yet" in line


def test_a_server_that_is_away_is_one_line_within_the_deadline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERDURE_DATABASE_URL", "postgresql://perdure:hunter2@127.0.0.1:1/perdure")
    began = time.monotonic()
    assert main(["history", "br/ada"]) == 1
    assert time.monotonic() - began < 20
    (line,) = capsys.readouterr().err.splitlines()
    assert "reading the history of BotRuntime default/ada" in line
    assert "hunter2" not in line
