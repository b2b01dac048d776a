"""Commands that ask nodes, against an API server whose agents answer as the test wants."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.api_server import serving

from perdure.cli.main import main

PATH = "/apis/perdure.dev/v1alpha1/runtimenodes"
Answer = Callable[[str], dict[str, Any] | None]


def node(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": f"uid-{name}", "annotations": {}}, "spec": {}, "status": {}}


@dataclass
class Api:
    """Two nodes. `answer`: what an agent makes of the id of a request; None: nothing."""

    nodes: dict[str, dict[str, Any]] = field(default_factory=lambda: {name: node(name) for name in ("a", "b")})
    answer: Answer = lambda _id: {"outcome": "success", "message": "4 runtimes are accepted"}
    overwritten: bool = False
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)

    def get(self, path: str) -> dict[str, Any]:
        if path == PATH:
            return {"kind": "RuntimeNodeList", "metadata": {}, "items": list(self.nodes.values())}
        return self.nodes[path.rpartition("/")[2]]

    def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        name = path.rpartition("/")[2]
        found = self.nodes[name]
        self.asked[name] = body
        found["metadata"]["annotations"] |= body["metadata"]["annotations"]
        id_ = found["metadata"]["annotations"]["perdure.dev/request"].partition("/")[2]
        said = self.answer(id_)
        if said is not None:
            found["status"]["lastRequest"] = {"id": id_, **said}
        if self.overwritten:
            found["metadata"]["annotations"]["perdure.dev/request"] = "reindex/another"
        return found


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    it, kubeconfig = Api(), tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    with serving(
        kubeconfig,
        lambda path: (200, it.get(path.partition("?")[0])),
        lambda path, body: (200, it.patch(path, body)),
    ):
        yield it


def test_accepting_absence_asks_one_node_once_and_prints_its_answer(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["nodes", "accept-absence", "b"]) == 0
    _header, row = capsys.readouterr().out.splitlines()
    assert row.split(maxsplit=2) == ["b", "success", "4 runtimes are accepted"]
    assert api.asked.keys() == {"b"}
    assert api.asked["b"]["metadata"]["uid"] == "uid-b"
    verb, _, id_ = api.asked["b"]["metadata"]["annotations"]["perdure.dev/request"].partition("/")
    assert verb == "accept-absence"
    assert id_


def test_accepting_absence_is_never_asked_of_all_nodes_at_once(api: Api) -> None:
    assert main(["nodes", "accept-absence"]) == 2
    assert not api.asked


def test_a_reindex_asks_all_nodes_unless_some_are_named(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["archive", "reindex", "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {name: answer["outcome"] for name, answer in told.items()} == {"a": "success", "b": "success"}
    assert len({body["metadata"]["annotations"]["perdure.dev/request"] for body in api.asked.values()}) == 1


def test_a_node_that_refuses_is_a_failure_that_is_printed(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answer = lambda _id: {"outcome": "failure", "code": "conflict", "message": "it is another cluster"}
    assert main(["nodes", "accept-absence", "a"]) == 1
    captured = capsys.readouterr()
    assert "it is another cluster" in captured.out
    assert "not done on a" in captured.err


def test_a_node_that_does_not_answer_is_told_with_how_far_it_came(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answer = lambda _id: {"outcome": "under_way", "message": "7 archives entered"}
    assert main(["archive", "reindex", "a", "--timeout", "1"]) == 1
    told = capsys.readouterr().err
    assert "7 archives entered" in told
    assert "The request stays" in told
    api.answer = lambda _id: None
    assert main(["nodes", "accept-absence", "a", "--timeout", "1"]) == 1
    assert "its agent has not begun" in capsys.readouterr().err


def test_a_request_that_another_one_replaced_is_not_waited_for(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answer = lambda _id: None
    api.overwritten = True
    assert main(["nodes", "accept-absence", "a"]) == 1
    assert "overwritten" in capsys.readouterr().err


def test_a_node_that_is_not_there_is_named_and_nobody_is_asked(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nodes", "accept-absence", "c"]) == 1
    assert "there is no node c" in capsys.readouterr().err
    assert not api.asked


def test_options_before_the_subcommand_are_refused_rather_than_dropped(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["nodes", "-o", "json", "accept-absence", "a"]) == 2
    assert "options go behind accept-absence" in capsys.readouterr().err
    assert not api.asked
