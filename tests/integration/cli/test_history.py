"""`perdure history` on a real PostgreSQL: what an agent wrote is what a person reads."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

import perdure
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
        assert main(["history", *arguments]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "never heard of" in captured.err
        assert ("it knows br/ada -n shop;" in captured.err) == ("ada" in arguments[0])


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda url: "definitely not a url", "it is neither postgresql://"),
        (lambda url: "postgresql://perdure:hunter2@[/x", "it is neither postgresql://"),
        (lambda url: url.replace("/test_", "/nowhere_"), 'database "nowhere_'),
        (
            lambda url: url.replace("postgres@", "nobody_known:hunter2@"),
            'role "nobody_known" does not exist; check user',
        ),
        (lambda url: f"{url}&sslmode=sideways", "sslmode"),
    ],
)
def test_a_wrong_url_is_one_line_without_the_password(
    change: Callable[[str], str], message: str, database_url: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("PERDURE_DATABASE_URL", change(database_url))
    assert main(["history", "br/ada"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert "hunter2" not in line


def test_a_server_without_tls_is_not_asked_where_tls_is_required(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        refusing = threading.Thread(target=refuse_tls, args=(listener,), daemon=True)
        refusing.start()
        url = f"postgresql://perdure:hunter2@127.0.0.1:{listener.getsockname()[1]}/perdure?sslmode=require"
        monkeypatch.setenv("PERDURE_DATABASE_URL", url)
        assert main(["history", "br/ada"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "SSL" in line
    assert "sslmode" in line, "says what to look at"
    assert "hunter2" not in line


def refuse_tls(listener: socket.socket) -> None:
    """As a PostgreSQL without TLS answers an SSLRequest: N (protocol-flow.html)."""
    while True:
        try:
            connection, _address = listener.accept()
        except OSError:
            return  # closed: the test is over
        with connection:
            connection.recv(8)
            connection.sendall(b"N")


def test_a_role_without_rights_is_told_what_it_lacks(
    ledger_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    role = f"nobody_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(ledger_url, autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {role} LOGIN".encode())
        try:
            monkeypatch.setenv("PERDURE_DATABASE_URL", ledger_url.replace("postgres@", f"{role}@"))
            for arguments in (["history", "br/ada"], ["history", "-A", "-f"]):
                assert main(arguments) == 1
                (line,) = capsys.readouterr().err.splitlines()
                assert "permission denied for table operations; grant the role" in line
        finally:
            owner.execute(f"DROP ROLE {role}".encode())


def test_following_prints_lines_of_json_as_they_come(ledger_url: str) -> None:
    command = [sys.executable, "-m", "perdure.cli.main", "history", "br/ada", "-n", "shop", "-f", "-o", "json"]
    source = Path(perdure.__file__).parents[1]
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(source)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background of a script has SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as following:
        assert following.stdout is not None
        try:
            assert [json.loads(following.stdout.readline())["id"] for _ in range(2)] == ["o1", "o2"]

            async def write() -> None:
                async with Database(ledger_url) as database:
                    ledger = PostgresAgentLedger(database, InstallationId("cluster-1"), NodeId("id-n1"))
                    row = OperationStarted(OperationId("o3"), ADA, Op.PURGE, Source.KUBECTL, AT + 99, None)
                    await ledger.apply([row], NodeName("n1"))

            block_on(write())
            newest = json.loads(following.stdout.readline())
            assert (newest["id"], newest["outcome"]) == ("o3", None)
            following.send_signal(signal.SIGINT)
            _out, err = following.communicate(timeout=20)
        finally:
            following.kill()
    assert following.returncode == 130
    assert err.strip() == ""
