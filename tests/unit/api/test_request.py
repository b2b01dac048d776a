"""Requests by annotation: which are understood, and what is said of the others."""

from __future__ import annotations

import re

import pytest

from perdure.api.request import MAX_ID_LENGTH, Request, RequestId, Verb, parse_request, write_request


@pytest.mark.parametrize("text", [None, ""])
def test_no_text_is_no_request(text: str | None) -> None:
    assert parse_request(text) is None


@pytest.mark.parametrize("id_", ["1", "7f3a-22.b_c", "x" * MAX_ID_LENGTH])
def test_what_is_written_is_what_is_read(id_: str) -> None:
    request = Request(RequestId(id_), Verb.CLEANUP)
    assert parse_request(write_request(Verb.CLEANUP, RequestId(id_))) == request


@pytest.mark.parametrize(
    "text", ["cleanup", "cleanup/", "cleanup/a b", "/1", "wipe/1", "cleanup/" + "x" * 65, "Cleanup/1"]
)
def test_anything_else_is_refused_and_the_problem_says_what_is_known(text: str) -> None:
    request = parse_request(text)
    assert request is not None
    assert request.verb is None
    assert "cleanup/ID" in request.problem
    assert re.fullmatch(r"refused-[0-9a-f]{32}", request.id)


def test_the_id_of_a_refused_request_is_of_safe_characters_and_differs_with_every_text() -> None:
    """It goes into rows of the ledger: a NUL there would keep them from being written."""
    texts = ["\0", "\udce4", "a\nb", "a\n c", "x" * 200_000, "x" * 200_001, "cleanup/\0"]
    requests = [parse_request(text) for text in [*texts, *texts]]
    assert all(request and re.fullmatch(r"refused-[0-9a-f]{32}", request.id) for request in requests)
    assert all(request and request.problem.isprintable() and len(request.problem) < 500 for request in requests)
    assert len({request.id for request in requests if request}) == len(texts)
