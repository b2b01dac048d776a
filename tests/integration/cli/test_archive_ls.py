"""`perdure archive ls` on a real PostgreSQL: every archive that the catalogue ever had."""

from __future__ import annotations

import json

import pytest
from tests.integration.ledger.samples import NAME_A, NODE_A, NODE_B, TTL, archived, finished, ref

from perdure.api.names import InstallationId
from perdure.cli.blocking import block_on
from perdure.cli.main import main
from perdure.ledger.agent import PostgresAgentLedger
from perdure.ledger.controller import PostgresControllerLedger
from perdure.ledger.database import Database
from perdure.ledger.migrate import migrate

pytestmark = pytest.mark.env
CLUSTER = InstallationId("cluster")


async def fill(url: str) -> None:
    async with Database(url) as database:
        await migrate(database)
        ledger = PostgresAgentLedger(database, CLUSTER, NODE_A)
        await PostgresControllerLedger(database, CLUSTER).bind(ref(), NAME_A, NODE_A, "image:1")
        await ledger.apply([finished(ref("fresh", name="fresh"))], NAME_A)
        lease = await ledger.acquire("key", TTL)
        for n in range(3):
            await archived(ledger, ref(), lease, f"operation-{n}")
        await archived(ledger, ref("other", name="other"), lease, "operation-9", node=NODE_B)
        await ledger.quarantine(2, "the hash is wrong")


@pytest.fixture(autouse=True)
def _ledger(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block_on(fill(database_url))
    monkeypatch.setenv("PERDURE_DATABASE_URL", database_url)


def test_archives_of_one_name_are_listed_newest_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["archive", "ls", "br/bot", "-n", "team-a", "-o", "json"]) == 0, capsys.readouterr().err
    rows = json.loads(capsys.readouterr().out)
    assert [(row["sequence"], row["state"], row["node"]) for row in rows] == [
        (3, "verified", "a"),
        (2, "quarantined", "a"),
        (1, "verified", "a"),
    ]
    assert rows[1]["why"] == "the hash is wrong"


def test_a_person_sees_state_size_and_node(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["archive", "ls", "-A"]) == 0, capsys.readouterr().err
    header, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert header == ["SEQUENCE", "NAMESPACE", "RUNTIME", "UID", "STATE", "SIZE", "NODE", "VERIFIED"]
    assert rows[0][:8] == ["4", "team-a", "br/other", "other", "verified", "931.3", "GiB", "node-b"]
    assert len(rows) == 4


def test_what_there_is_none_of_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["archive", "ls", "-n", "team-b"]) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "No archive of anything in the namespace team-b is known.\n")
    assert main(["archive", "ls", "br/fresh", "-n", "team-a"]) == 0
    assert capsys.readouterr().err == "No archive of BotRuntime/fresh in the namespace team-a is known.\n"


@pytest.mark.parametrize("arguments", [["gr/bot", "-n", "team-a"], ["br/typo", "-A"], ["br/bot"]])
def test_a_name_that_was_never_heard_of_is_an_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["archive", "ls", *arguments]) == 1
    assert "never heard of" in capsys.readouterr().err


def test_what_cannot_be_a_namespace_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["archive", "ls", "-n", "Foo Bar"]) == 2
    assert "cannot be a namespace" in capsys.readouterr().err
