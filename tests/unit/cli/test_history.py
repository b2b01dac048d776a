"""`perdure history`: what is asked of the ledger, and what a person reads."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import perdure.ledger.history
from perdure.api.names import Kind
from perdure.cli.history import OPS, OUTCOMES, SOURCES
from perdure.cli.main import main
from perdure.cli.operations_view import distinct_length, duration
from perdure.ledger.history import HistoryQuery, HistoryRow, Life
from perdure.plan.world import Op, Outcome, Source
from perdure.reconcile.ports.errors import LedgerUnavailable

URL = "postgresql://perdure:hunter2@db/perdure"
NOON = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)

STARTED = HistoryRow(
    installation="cluster-1",
    id="1",
    uid="6c0d2a54-1111-2222-3333-444455556666",
    kind=Kind.BOT,
    namespace="shop",
    name="ada",
    node_name="n1",
    op="start",
    source="kubectl",
    fence=None,
    before="Stopped",
    after="Running",
    outcome="success",
    error_code=None,
    message=None,
    image="img:1",
    snapshot_key="br-6c0d-1",
    correlation="7f3a91c0",
    started_at=NOON,
    finished_at=NOON + timedelta(milliseconds=83),
    recorded_at=NOON,
)
FAILED = replace(
    STARTED, id="2", op="preserve", outcome="failure", error_code="StoreFull", message="no room\x1b[2J\nin [store]"
)
UNDER_WAY = replace(STARTED, id="3", outcome=None, finished_at=None, after=None)
END_ONLY = replace(STARTED, id="4", op=None, source=None, started_at=None, outcome="superseded")


class Ledger:
    """Answers with `rows`, keeps what was asked."""

    def __init__(self) -> None:
        self.rows: list[HistoryRow] = []
        self.lives: list[Life] = []
        self.asked: list[tuple[str, HistoryQuery]] = []
        self.fails: LedgerUnavailable | None = None

    async def read(self, url: str, query: HistoryQuery) -> list[HistoryRow]:
        self.asked.append((url, query))
        if self.fails:
            raise self.fails
        return self.rows

    async def find_lives(self, _url: str, name: str) -> list[Life]:
        return [life for life in self.lives if life.name == name]


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    it = Ledger()
    monkeypatch.setattr(perdure.ledger.history, "read_history", it.read)
    monkeypatch.setattr(perdure.ledger.history, "find_lives", it.find_lives)
    monkeypatch.setenv("PERDURE_DATABASE_URL", URL)
    return it


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("br/ada", Kind.BOT),
        ("botruntime/ada", Kind.BOT),
        ("BotRuntime/ada", Kind.BOT),
        ("botruntimes/ada", Kind.BOT),
        ("botruntime.perdure.dev/ada", Kind.BOT),
        ("gr/ada", Kind.GAME),
        ("gameruntimes.perdure.dev/ada", Kind.GAME),
    ],
)
def test_a_kind_may_be_said_as_kubectl_lets_one(target: str, kind: Kind, ledger: Ledger) -> None:
    ledger.rows = [STARTED]
    assert main(["history", target, "-n", "shop", "--limit", "7"]) == 0
    assert ledger.asked == [(URL, HistoryQuery(kind=kind, namespace="shop", name="ada", limit=7))]


@pytest.mark.parametrize("target", ["ada", "br/", "br/  ", "/ada", "pod/ada", "ra/ada", "", " "])
def test_what_names_no_runtime_is_refused(target: str, ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", target]) == 2
    assert (
        "is not KIND/NAME such as br/ada or gameruntime/castle; kinds: br (BotRuntime), gr" in capsys.readouterr().err
    )
    assert ledger.asked == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["br/Ada"], "'Ada' cannot be a runtime's name"),
        (["br/a/b"], "'a/b' cannot be a runtime's name"),
        (["br/" + 64 * "a"], "1 to 63"),
        (["-n", ""], "'' cannot be a namespace"),
        (["-n", "a%b"], "'a%b' cannot be a namespace"),
        (["--uid", "a'b"], "a uid, as the column UID"),
        (["--op", "explode"], "'explode' is not one of 'start', 'stop', "),
        (["--source", "santa"], "'santa' is not one of 'kubectl', "),
        (["--source", ""], "'' is not one of 'kubectl', "),
        (["--outcome", "meh"], "'meh' is not one of 'success', 'failure', 'superseded', 'under_way'"),
        (["--limit", "0"], "0 is not in the range"),
        (["--since", "yesterday"], "'yesterday' is no point in time such as 2h"),
        (["--since", "-2h"], "'-2h' is no point in time"),
        (["--since", "1h", "--until", "2h"], "is not after --since"),
        (["-f", "--until", "2h"], "choose one"),
    ],
)
def test_a_wrong_filter_is_one_line_that_says_what_is_known(
    arguments: list[str], message: str, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["history", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert ledger.asked == []


def test_filters_are_asked_of_the_ledger(ledger: Ledger) -> None:
    arguments = ["--op", "purge", "--op", "force_release", "--outcome", "under_way", "--source", "kubectl"]
    assert main(["history", "-A", *arguments, "--uid", "6c0d", "--since", "2026-05-01T08:00:00+02:00"]) == 0
    ((_url, query),) = ledger.asked
    assert query == HistoryQuery(
        uid="6c0d",
        ops=("purge", "force_release"),
        outcomes=("under_way",),
        sources=("kubectl",),
        since=datetime(2026, 5, 1, 6, 0, 0, tzinfo=UTC),
    )


def test_rows_of_several_runtimes_say_whose_they_are(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    ledger.rows = [STARTED]
    assert main(["history", "-A"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["TIME", "NAMESPACE", "RUNTIME", "UID"]
    assert row.split()[2:5] == ["shop", "br/ada", "6c0d2a54"]
    assert main(["history"]) == 0
    assert capsys.readouterr().out.split()[:3] == ["TIME", "RUNTIME", "UID"]


def test_two_lives_whose_uids_begin_alike_are_told_apart(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    ledger.rows = [STARTED, replace(STARTED, uid="6c0d2a54-1119-0000-0000-000000000000")]
    assert main(["history", "br/ada"]) == 0
    uids = [line.split()[2] for line in capsys.readouterr().out.splitlines()[1:]]
    assert uids == ["6c0d2a54-1111", "6c0d2a54-1119"]
    assert distinct_length(["short", "shorter", "short"]) == 8


def test_the_table_tells_one_operation_per_line(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    ledger.rows = [FAILED, UNDER_WAY, END_ONLY, STARTED]
    assert main(["history", "br/ada", "-n", "shop"]) == 0
    header, failed, under_way, end_only, started = capsys.readouterr().out.splitlines()
    assert header.split() == ["TIME", "UID", "OP", "SOURCE", "OUTCOME", "CODE", "DURATION", "MESSAGE"]
    assert started.split() == ["2026-05-01", "12:00:00Z", "6c0d2a54", "start", "kubectl", "success", "-", "83ms"]
    assert failed.split()[5:8] == ["failure", "StoreFull", "83ms"]
    assert failed.rstrip().endswith("no room·[2J in [store]")
    assert under_way.split()[5:] == ["under", "way", "-", "-"]
    assert end_only.split()[2:] == ["6c0d2a54", "?", "?", "superseded", "-", "-"]


def test_wide_also_tells_node_phases_image_snapshot_and_cause(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger.rows = [STARTED]
    assert main(["history", "br/ada", "-o", "wide"]) == 0
    _header, row = capsys.readouterr().out.splitlines()
    assert row.split()[-7:] == ["n1", "Stopped", "→", "Running", "img:1", "br-6c0d-1", "7f3a91c0"]


def test_what_one_cause_brought_about_is_asked_for_by_its_id(ledger: Ledger) -> None:
    assert main(["history", "-A", "--correlation", "7f3a91c0"]) == 0
    assert ledger.asked[0][1].correlation == "7f3a91c0"


def test_an_id_of_a_cause_that_cannot_be_one_is_refused(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "-A", "--correlation", "no such thing"]) == 2
    assert "is no id of a cause" in capsys.readouterr().err
    assert ledger.asked == []


def test_json_has_every_field(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    ledger.rows = [FAILED, STARTED]
    assert main(["history", "br/ada", "-o", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in rows] == ["2", "1"]
    assert rows[0]["uid"] == FAILED.uid
    assert rows[0]["message"] == FAILED.message
    assert rows[0]["started_at"] == "2026-05-01T12:00:00Z"
    assert set(rows[0]) == set(HistoryRow.__slots__)


def test_a_runtime_that_nobody_heard_of_is_an_error_that_says_what_to_check(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    for output in ("table", "json"):
        assert main(["history", "br/ada", "-o", output]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "never heard of BotRuntime default/ada; it knows no runtime of that name" in captured.err
    ledger.lives = [Life(Kind.GAME, "default", "ada", "u1", NOON), Life(Kind.BOT, "shop", "ada", "u2", NOON)]
    assert main(["history", "br/ada"]) == 1
    assert "it knows br/ada -n shop, gr/ada -n default; check the kind" in capsys.readouterr().err


def test_a_known_runtime_to_which_nothing_was_done_is_no_error(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger.lives = [Life(Kind.BOT, "default", "ada", "u1", NOON)]
    assert main(["history", "br/ada"]) == 0
    assert "Nothing in the history of BotRuntime default/ada matches" in capsys.readouterr().err
    assert main(["history", "br/ada", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_ledger_that_is_away_is_one_line_without_the_password(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger.fails = LedgerUnavailable(f"reading the history: {URL} refused")
    assert main(["history", "br/ada"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "reading the history: postgresql://perdure:***@db/perdure refused" in line


def test_without_a_url_the_embedded_server_of_the_state_folder_is_read(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PERDURE_DATABASE_URL")
    monkeypatch.setenv("PERDURE_STATE_DIR", str(tmp_path))
    assert main(["history", "br/ada"]) == 2
    assert "PERDURE_DATABASE_URL" in capsys.readouterr().err
    (tmp_path / "postgres" / "data").mkdir(parents=True)
    ledger.rows = [STARTED]
    assert main(["history", "br/ada"]) == 0
    ((url, _query),) = ledger.asked
    assert str(tmp_path) in url or "perdure-pg-" in url


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.0834, "83ms"),
        (0.9994, "999ms"),
        (0.9996, "1.0s"),
        (59.94, "59.9s"),
        (59.96, "1m00s"),
        (125, "2m05s"),
        (3599.6, "1h00m"),
        (12000, "3h20m"),
        (86399.6, "1d00h"),
        (352800, "4d02h"),
        (-1, "0ms"),
    ],
)
def test_a_duration_is_said_as_a_person_says_it(seconds: float, text: str) -> None:
    assert duration(timedelta(seconds=seconds)) == text


def test_what_may_be_asked_for_is_what_is_written() -> None:
    assert set(OPS) == {*Op, "force_release"}
    assert set(OUTCOMES) == {*Outcome, perdure.ledger.history.UNDER_WAY}
    assert set(SOURCES) == {*Source}
