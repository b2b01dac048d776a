"""`perdure nodes` against an API server that says what the test wants."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.api_server import serving

from perdure.cli.main import main

PATH = "/apis/perdure.dev/v1alpha1/runtimenodes"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/perdure-system/leases"
NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
"""By the server's clock, which this machine's is far from."""


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


READY = condition("Ready", "True", "AsExpected")


def node(name: str, **status: Any) -> dict[str, Any]:
    return {
        "apiVersion": "perdure.dev/v1alpha1",
        "kind": "RuntimeNode",
        "metadata": {"name": name, "uid": f"uid-{name}", "annotations": {}},
        "spec": {},
        "status": {"nodeID": f"id-{name}", "engine": "containerd", "engineVersion": "1.6.20", **status},
    }


ORPHAN = {
    "uid": "0f9c",
    "kind": "BotRuntime",
    "namespace": "shop",
    "name": "ada",
    "snapshotKey": "br-0f9c-1",
    "running": True,
}


def lease(name: str, ago: float, *, agent_is_wrong_by: float = 0.0, dated: bool = True) -> dict[str, Any]:
    """A node's Lease that was renewed `ago` seconds before the server answers, by its clock."""
    at, by_agent = (NOW - timedelta(seconds=it) for it in (ago, ago + agent_is_wrong_by))
    entry = {"manager": "perdure", "fieldsV1": {"f:spec": {"f:renewTime": {}}}, "time": f"{at:%Y-%m-%dT%H:%M:%SZ}"}
    noted = {"manager": "kubectl", "fieldsV1": {"f:metadata": {}}, "time": f"{NOW:%Y-%m-%dT%H:%M:%SZ}"}
    return {
        "metadata": {"name": f"node-{name}", "managedFields": [noted, entry] if dated else []},
        "spec": {"leaseDurationSeconds": 40, "renewTime": f"{by_agent:%Y-%m-%dT%H:%M:%S.%fZ}"},
    }


@dataclass
class Api:
    """Answers of the two paths that are asked for, given at `NOW`."""

    kubeconfig: Path
    items: list[dict[str, Any]] = field(default_factory=list)
    leases: list[dict[str, Any]] | None = None
    """None: every node's agent is alive."""
    code: int = 200
    code_of_leases: int = 200
    asked: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        path = path.partition("?")[0]
        self.asked.append(path)
        code = self.code if path == PATH else self.code_of_leases
        if code != 200:
            return code, {"kind": "Status", "reason": "Forbidden", "message": "no", "code": code}
        if path == PATH:
            return 200, {"kind": "RuntimeNodeList", "metadata": {}, "items": self.items}
        leases = self.leases if self.leases is not None else [lease(it["metadata"]["name"], 5) for it in self.items]
        return 200, {"kind": "LeaseList", "metadata": {}, "items": leases}


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    it = Api(tmp_path / "kubeconfig")
    monkeypatch.setenv("KUBECONFIG", str(it.kubeconfig))
    with serving(it.kubeconfig, it.answer, now=lambda: NOW):
        yield it


def test_a_line_for_each_node_sorted_by_name(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.items = [
        node("b", conditions=[condition("Ready", "False", "EngineUnavailable", "containerd does not answer")]),
        node("a", conditions=[condition("Ready", "True", "Running")], runtimes=7, orphans=[ORPHAN]),
        node("c"),
    ]
    assert main(["nodes"]) == 0
    assert api.asked == [PATH, LEASES]
    header, a, b, c = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "READY", "ENGINE", "RUNTIMES", "ORPHANS", "REMARKS"]
    assert a.split() == ["a", "True", "containerd", "1.6.20", "7", "1"]
    assert b.split()[:4] == ["b", "False", "containerd", "1.6.20"]
    assert b.rstrip().endswith("Ready=False/EngineUnavailable: containerd does not answer")
    assert c.split()[:2] == ["c", "Unknown"]


def test_wide_lists_each_orphan(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.items = [node("a", orphans=[ORPHAN, {**ORPHAN, "uid": "77", "snapshotKey": "br-77-2", "running": False}])]
    assert main(["nodes", "-o", "wide"]) == 0
    out = capsys.readouterr().out
    assert "id-a" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["a", "BotRuntime/shop/ada", "0f9c", "br-0f9c-1", "yes"] in rows
    assert ["a", "BotRuntime/shop/ada", "77", "br-77-2", "no"] in rows


def test_a_frozen_cordoned_or_given_up_node_says_so(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    frozen = node("a", conditions=[READY, condition("Trusted", "False", "MassAbsence", "look")])
    frozen["spec"] = {"unschedulable": True}
    frozen["metadata"]["annotations"] = {"perdure.dev/out-of-service": "burnt"}
    api.items = [frozen, node("b", conditions=[READY, condition("Trusted", "True", "AsExpected")])]
    assert main(["nodes"]) == 0
    _header, a, b = capsys.readouterr().out.splitlines()
    assert a.rstrip().endswith("cordoned; out of service; Trusted=False/MassAbsence: look")
    assert "Trusted" not in b


def test_json_is_what_the_api_server_has_and_the_heartbeat(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.items = [node("a", orphans=[ORPHAN]), node("b"), node("c")]
    api.leases = [lease("a", 5), lease("b", 190)]
    assert main(["nodes", "-o", "json"]) == 0
    a, b, c = json.loads(capsys.readouterr().out)
    assert a == api.items[0] | {"heartbeat": {"alive": True, "silentSeconds": 5.0}}
    assert b["heartbeat"] == {"alive": False, "silentSeconds": 190.0}
    assert c["heartbeat"] == {"alive": False, "silentSeconds": None}


@pytest.mark.parametrize("wrong_by", [-3600.0, 0.0, 3600.0])
@pytest.mark.parametrize(
    ("ago", "ready"),
    [
        (0, "True"),
        (40, "True"),
        (41, "Unknown (no heartbeat for 41.0s)"),
        (190, "Unknown (no heartbeat for 3m10s)"),
        (200_000, "Unknown (no heartbeat for 2d07h)"),
    ],
)
def test_ready_is_what_the_agent_says_only_while_its_heart_beats_whatever_its_clock(
    api: Api, capsys: pytest.CaptureFixture[str], ago: int, ready: str, wrong_by: float
) -> None:
    api.items = [node("a", conditions=[READY])]
    api.leases = [lease("a", ago, agent_is_wrong_by=wrong_by)]
    assert main(["nodes"]) == 0
    _header, row = capsys.readouterr().out.splitlines()
    assert row.removeprefix("a").strip().startswith(f"{ready} ")


def test_an_agent_that_never_had_a_heartbeat_or_one_that_cannot_be_dated_is_not_ready(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    api.items = [node("a", conditions=[READY]), node("b", conditions=[READY])]
    api.leases = [lease("b", 5, dated=False)]
    assert main(["nodes"]) == 0
    _header, a, b = capsys.readouterr().out.splitlines()
    assert "Unknown (no heartbeat)" in a
    assert "Unknown (heartbeat without a date)" in b


def test_heartbeats_that_may_not_be_read_are_not_guessed(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.items = [node("a", conditions=[READY], runtimes=7)]
    api.code_of_leases = 403
    assert main(["nodes"]) == 0
    captured = capsys.readouterr()
    assert "Unknown (heartbeat not readable)" in captured.out
    assert "ask for the right to list leases in the namespace perdure-system" in captured.err
    assert main(["nodes", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["heartbeat"] is None


def test_an_api_server_that_goes_away_in_between_is_an_error(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.items = [node("a", conditions=[READY])]
    api.code_of_leases = 503
    assert main(["nodes"]) == 1
    assert "listing node Leases" in capsys.readouterr().err


def test_what_others_wrote_is_text_and_nothing_else(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.items = [node("a", conditions=[condition("Ready", "False", "X", "[red]\x1b[2Jline\nbreak [link=http://x]")])]
    assert main(["nodes"]) == 0
    out = capsys.readouterr().out
    assert "[red]·[2Jline break [link=http://x]" in out
    assert "\x1b" not in out


def test_no_node_is_said_and_is_no_error(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nodes"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no agent has reported" in captured.err


def test_a_missing_right_is_named(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.code = 403
    assert main(["nodes"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "listing RuntimeNodes" in line
    assert line.endswith("ask for the right to list runtimenodes.perdure.dev")


def test_no_api_server_is_said_with_its_address(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads(api.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = "http://127.0.0.1:1"
    api.kubeconfig.write_text(json.dumps(config))
    assert main(["nodes"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "http://127.0.0.1:1" in line


def test_no_kubeconfig_is_said_with_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    assert main(["nodes"]) == 1
    assert "KUBECONFIG" in capsys.readouterr().err
