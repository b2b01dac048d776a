"""`perdure top` on a real PostgreSQL: what agents wrote, counted."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from tests.integration.ledger.samples import NAME_A, NODE_A, NODE_B, TTL, archived, failing, finished, ref, started

from perdure.api.names import InstallationId, Kind
from perdure.api.phases import Phase
from perdure.cli.blocking import block_on
from perdure.cli.main import main
from perdure.cli.output import size
from perdure.ledger.agent import PostgresAgentLedger
from perdure.ledger.controller import PostgresControllerLedger
from perdure.ledger.database import Database
from perdure.ledger.migrate import migrate
from perdure.plan.world import Op, Outcome

CLUSTER = InstallationId("cluster")


async def fill(url: str) -> None:
    now = time.time()
    async with Database(url) as database:
        await migrate(database)
        ledger = PostgresAgentLedger(database, CLUSTER, NODE_A)
        controller = PostgresControllerLedger(database, CLUSTER)
        for n in range(3):
            await controller.bind(ref(f"run-{n}"), NAME_A, NODE_A, "image:1")
            await ledger.apply([started(ref(f"run-{n}"), at=now), finished(ref(f"run-{n}"), at=now)], NAME_A)
        await controller.bind(ref("new", kind=Kind.GAME), NAME_A, NODE_A, "image:1")
        for n, (code, at) in enumerate((("StoreFull", now), ("StoreFull", now - 60), ("Old", now - 90_000)), 2):
            failed = finished(ref("run-0"), n, at=at, after=Phase.STOPPED, message="why")
            await ledger.apply([replace(failed, outcome=Outcome.FAILURE, error_code=code)], NAME_A)
        await ledger.apply([started(ref("run-1"), 9, op=Op.PRESERVE, at=now - 7260)], NAME_A)
        await ledger.apply([failing(ref("run-1"), 9, at=now - 60, error_code="StoreFull", message="no room")], NAME_A)
        await ledger.apply([started(ref("run-2"), 9, op=Op.STOP, at=now - 60)], NAME_A)
        lease = await ledger.acquire("key", TTL)
        await archived(ledger, ref("run-1"), lease, "op-1")
        await archived(ledger, ref("run-2"), lease, "op-2", node=NODE_B)
        lost = ref("lost")
        await ledger.apply([finished(lost, snapshot_key="br-lost-1", at=now)], NAME_A)
        await controller.force_release(lost, "the node burnt down")


@pytest.fixture
def ledger_url(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    block_on(fill(database_url))
    monkeypatch.setenv("PERDURE_DATABASE_URL", database_url)
    monkeypatch.setenv("KUBECONFIG", "/nowhere/kubeconfig")
    return database_url


@pytest.mark.env
@pytest.mark.usefixtures("ledger_url")
def test_everything_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "-o", "json"]) == 0, capsys.readouterr().err
    told = json.loads(capsys.readouterr().out)
    assert {(it["kind"], it["phase"]): it["count"] for it in told["runtimes"]} == {
        ("BotRuntime", "Running"): 2,
        ("BotRuntime", "Stopped"): 1,
        ("GameRuntime", ""): 1,
    }
    assert [(it["code"], it["count"], it["latest"]) for it in told["failures"]] == [
        ("StoreFull", 3, "BotRuntime team-a/bot")
    ]
    assert (told["oldest_under_way"]["error_code"], told["oldest_under_way"]["message"]) == ("StoreFull", "no room")
    assert (told["under_way"], told["oldest_under_way"]["op"], told["oldest_under_way"]["uid"]) == (
        2,
        "preserve",
        "run-1",
    )
    assert [(it["node"], it["state"], it["count"], it["bytes"]) for it in told["archives"]] == [
        ("a", "verified", 1, 10**12),
        ("node-b", "verified", 1, 10**12),
    ]
    assert told["orphans"] == [{"node": "a", "count": 1}]
    assert told["prospects"]["due"] == []
    assert "no kubeconfig" in told["prospects"]["problem"]


@pytest.mark.env
@pytest.mark.usefixtures("ledger_url")
def test_a_person_reads_it_on_one_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top"]) == 0, capsys.readouterr().err
    page = capsys.readouterr().out
    lines = [line.split() for line in page.splitlines()]
    assert ["BotRuntime", "Running", "2"] in lines
    assert ["GameRuntime", "-", "1"] in lines
    assert "Under way: 2; for longest: preserve of br/bot -n team-a on a, since 2h01m\n  StoreFull: no room" in page
    assert ["a", "verified", "1", "931.3", "GiB"] in lines
    assert "StoreFull" in page
    assert "Old" not in page


@pytest.mark.env
def test_an_empty_ledger_is_shown_as_empty(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def make() -> None:
        async with Database(database_url) as database:
            await migrate(database)

    block_on(make())
    monkeypatch.setenv("PERDURE_DATABASE_URL", database_url)
    monkeypatch.setenv("KUBECONFIG", "/nowhere/kubeconfig")
    assert main(["top"]) == 0
    printed = capsys.readouterr()
    assert "Under way: 0\n" in printed.out
    assert "What is cleaned up next, and who waits, is not known" in printed.err


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1048575, "1.0 MiB"), (10**16, "9094.9 TiB")]
)
def test_a_size_is_said_as_a_person_says_it(count: int, text: str) -> None:
    assert size(count) == text
