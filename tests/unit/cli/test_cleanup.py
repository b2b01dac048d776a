"""`perdure cleanup` against an API server whose agent answers as the test wants."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.api_server import serving

from perdure.cli.main import main

PATH = "/apis/perdure.dev/v1alpha1/namespaces/agents/botruntimes/ada"
Answer = Callable[[str], dict[str, Any] | None]


@dataclass
class Api:
    """One BotRuntime. `answer`: what its agent makes of the id of a request; None: nothing."""

    runtime: dict[str, Any] = field(
        default_factory=lambda: {
            "kind": "BotRuntime",
            "metadata": {"namespace": "agents", "name": "ada", "uid": "uid-1", "annotations": {"mine": "stays"}},
            "spec": {"image": "x"},
            "status": {"phase": "Stopped"},
        }
    )
    answer: Answer = lambda _id: None
    patches: list[dict[str, Any]] = field(default_factory=list)
    refusal: tuple[int, str] | None = None

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        if path != PATH:
            details = {"name": path.rpartition("/")[2], "kind": "botruntimes"}
            return 404, {
                "kind": "Status",
                "code": 404,
                "reason": "NotFound",
                "message": "not found",
                "details": details,
            }
        return 200, self.runtime

    def patch(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.refusal is not None:
            code, message = self.refusal
            return code, {"kind": "Status", "code": code, "reason": "Forbidden", "message": message}
        self.patches.append(body)
        annotations = self.runtime["metadata"]["annotations"]
        annotations |= body["metadata"]["annotations"]
        id_ = annotations["perdure.dev/request"].partition("/")[2]
        found = self.answer(id_)
        if found is not None:
            self.runtime["status"]["lastRequest"] = {"id": id_, **found}
        return 200, self.runtime


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    it, kubeconfig = Api(), tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    with serving(kubeconfig, it.get, lambda _path, body: it.patch(body)):
        yield it


def run(*more: str) -> int:
    return main(["cleanup", "br/ada", "-n", "agents", *more])


def test_a_request_is_one_annotation_on_exactly_this_object(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answer = lambda _id: {"outcome": "success", "message": "its data is kept as archive br-ada-7"}
    assert run() == 0
    assert capsys.readouterr().out == "botruntime/ada: cleaned up: its data is kept as archive br-ada-7\n"
    (patch,) = api.patches
    assert patch.keys() == {"metadata"}
    assert patch["metadata"]["uid"] == "uid-1"
    assert patch["metadata"]["annotations"].keys() == {"perdure.dev/request"}
    assert api.runtime["metadata"]["annotations"]["mine"] == "stays"


@pytest.mark.parametrize(("of_context", "code"), [({"namespace": "agents"}, 0), ({"namespace": "other"}, 1), ({}, 1)])
def test_the_namespace_of_the_current_context_is_taken_as_kubectl_takes_it(
    api: Api, of_context: dict[str, str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(os.environ["KUBECONFIG"])
    written = json.loads(path.read_text())
    written["contexts"][0]["context"] |= of_context
    path.write_text(json.dumps(written))
    assert main(["cleanup", "br/ada", "--no-wait"]) == code
    if code:
        assert f"{of_context.get('namespace', 'default')}/ada" in capsys.readouterr().err
    assert run("--no-wait") == 0, "what is given counts"


def test_each_request_has_an_id_of_its_own(api: Api) -> None:
    api.answer = lambda _id: {"outcome": "success", "code": "replay_no_op", "message": "it was removed before"}
    assert [run(), run()] == [0, 0]
    first, second = (patch["metadata"]["annotations"]["perdure.dev/request"] for patch in api.patches)
    assert first != second


def test_what_was_removed_before_is_no_failure(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answer = lambda _id: {"outcome": "success", "code": "replay_no_op", "message": "it was removed before"}
    assert run("-o", "json") == 0
    assert json.loads(capsys.readouterr().out)["code"] == "replay_no_op"


def test_a_conflict_is_a_failure_that_says_what_to_do(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answer = lambda _id: {"outcome": "failure", "code": "conflict", "message": "it is running: stop it first"}
    assert run() == 1
    assert "botruntime/ada was not cleaned up (conflict): it is running: stop it first" in capsys.readouterr().err


def test_without_waiting_only_the_request_is_made(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--no-wait") == 0
    assert len(api.patches) == 1
    assert "requested" in capsys.readouterr().out


def test_an_answer_that_does_not_come_is_told_with_what_is_known(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    condition = {"type": "Preserved", "status": "False", "reason": "StoreFull", "message": "no space for the archive"}
    api.runtime["status"]["conditions"] = [condition]
    assert run("--timeout", "1") == 1
    told = capsys.readouterr().err
    assert "StoreFull: no space for the archive" in told
    assert "status.lastRequest" in told


def test_a_request_that_is_not_allowed_is_told_as_the_server_says_it(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    api.refusal = (403, "user ida cannot patch botruntimes")
    assert run() == 1
    assert "user ida cannot patch botruntimes" in capsys.readouterr().err


def test_what_is_not_there_or_is_being_deleted_is_refused(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cleanup", "br/bob", "-n", "agents"]) == 1
    assert "bob" in capsys.readouterr().err
    api.runtime["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert run() == 1
    assert "is being deleted" in capsys.readouterr().err
    assert api.patches == []


@pytest.mark.parametrize("target", ["ada", "pod/ada", "br/", "br/Not_A_Name"])
def test_a_target_that_cannot_be_is_a_usage_error(target: str) -> None:
    assert main(["cleanup", target]) == 2
