"""What `perdure top` reads from the objects, from an API server that says what the test wants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from tests.unit.cli.api_server import serving

from perdure.api.names import Kind
from perdure.cli.blocking import block_on
from perdure.cli.prospects import MOST, DueCleanup, Prospects, Stuck, read_prospects

PAGE = 7


@dataclass
class Api:
    """Lists of objects, a few to a page."""

    kubeconfig: Path
    items: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    code: int = 200

    def answer(self, url: str) -> tuple[int, dict[str, Any]]:
        if self.code != 200:
            return self.code, {"kind": "Status", "reason": "Forbidden", "message": "no", "code": self.code}
        path, query = urlsplit(url).path, parse_qs(urlsplit(url).query)
        items, at = self.items.get(path.rpartition("/")[2], []), int(query.get("continue", ["0"])[0])
        token = str(at + PAGE) if at + PAGE < len(items) else ""
        return 200, {"kind": "List", "metadata": {"continue": token}, "items": items[at : at + PAGE]}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    it = Api(tmp_path / "kubeconfig")
    with serving(it.kubeconfig, it.answer):
        yield it


def runtime(name: str, kind: Kind = Kind.BOT, **status: Any) -> dict[str, Any]:
    return {
        "apiVersion": "perdure.dev/v1alpha1",
        "kind": kind.value,
        "metadata": {"name": name, "namespace": "shop", "uid": f"uid-{name}", "generation": 1, "resourceVersion": "1"},
        "spec": {"image": "image:1"},
        "status": status,
    }


def ready(reason: str, since: str) -> list[dict[str, Any]]:
    return [{"type": "Ready", "status": "False", "reason": reason, "message": "", "lastTransitionTime": since}]


def day(n: int) -> str:
    return f"2026-05-{n:02}T00:00:00Z"


def test_the_next_clean_ups_come_first_and_the_rest_is_counted(api: Api) -> None:
    expiring = [runtime(f"bot-{n}", phase="Stopped", expiresAt=day(30 - n)) for n in range(20)]
    api.items["botruntimes"] = [*expiring, runtime("alive", phase="Running")]
    api.items["gameruntimes"] = [runtime("castle", Kind.GAME, phase="Stopped", expiresAt=day(2))]
    seen = block_on(read_prospects(api.kubeconfig))
    assert (seen.problem, seen.due_count, len(seen.due), seen.stuck_count) == ("", 21, MOST, 0)
    assert seen.due[:2] == (
        DueCleanup(Kind.GAME, "shop", "castle", day(2)),
        DueCleanup(Kind.BOT, "shop", "bot-19", day(11)),
    )


def test_who_waits_longest_for_a_person_comes_first(api: Api) -> None:
    api.items["botruntimes"] = [
        runtime("later", phase="Failed", conditions=ready("ImageNotFound", day(9))),
        runtime("sooner", phase="Blocked", conditions=ready("DataMissing", day(3))),
        runtime("alive", phase="Running", conditions=ready("InProgress", day(1))),
    ]
    seen = block_on(read_prospects(api.kubeconfig))
    assert seen.stuck == (
        Stuck(Kind.BOT, "shop", "sooner", "Blocked", "DataMissing", day(3)),
        Stuck(Kind.BOT, "shop", "later", "Failed", "ImageNotFound", day(9)),
    )
    assert (seen.stuck_count, seen.due) == (2, ())


def test_what_is_no_runtime_is_passed_over(api: Api) -> None:
    api.items["botruntimes"] = [{"metadata": {}}, runtime("bot", phase="Stopped", expiresAt=day(1))]
    assert block_on(read_prospects(api.kubeconfig)).due_count == 1


@pytest.mark.parametrize("code", [403, 500])
def test_a_cluster_that_says_no_is_a_problem_and_not_an_error(api: Api, code: int) -> None:
    api.code = code
    seen = block_on(read_prospects(api.kubeconfig))
    assert seen == Prospects(problem=seen.problem)
    assert "listing BotRuntimes" in seen.problem


def test_without_a_cluster_it_says_so(tmp_path: Path) -> None:
    assert "no kubeconfig" in block_on(read_prospects(tmp_path / "none")).problem
