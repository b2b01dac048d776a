"""What a person asks for once, beside the spec: the value of the annotation `perdure.dev/request`, such as
`cleanup/7f3a`. The id after the slash makes it one request: it is done once, however often it is seen."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

RequestId = NewType("RequestId", str)

MAX_ID_LENGTH = 64
_DIGEST_CHARACTERS = 32
_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_ID_LENGTH - 1}}}")


class Verb(StrEnum):
    CLEANUP = "cleanup"
    """Of a runtime."""
    REINDEX = "reindex"
    """Of a node: enter the archives of its stores into the ledger's catalogue again."""
    ACCEPT_ABSENCE = "accept-absence"
    """Of a node: the objects that its runtimes have not any more are meant to be gone."""


UNDER_WAY = "under_way"
"""What an answer has for an outcome while what was asked for goes on: shown, and taken up again after a kill."""
OF_RUNTIMES = (Verb.CLEANUP,)
OF_NODES = (Verb.REINDEX, Verb.ACCEPT_ABSENCE)


@dataclass(frozen=True, slots=True)
class Request:
    """`problem`: why it is refused; it then has no verb.

    The id goes into rows, logs and status, so it is of letters, digits, dots, hyphens and underscores whatever was
    written: that of a refused request is made from its text, and the same for the same text.
    """

    id: RequestId
    verb: Verb | None
    problem: str = ""


def parse_request(text: str | None, of: Sequence[Verb] = OF_RUNTIMES) -> Request | None:
    """The annotation's value, understood; `of`: what may be asked for. None where there is none."""
    if not text:
        return None
    verb, _slash, id_ = text.partition("/")
    known = next((found for found in of if found == verb), None)
    if known is not None and _ID.fullmatch(id_):
        return Request(RequestId(id_), known)
    verbs = ", ".join(f"{found}/ID" for found in of)
    problem = (
        f"request {text[:MAX_ID_LENGTH]!r} is not understood; known are {verbs}, each ID being a new one of at most "
        f"{MAX_ID_LENGTH} letters, digits, dots, hyphens and underscores"
    )
    return Request(_id_of_refused(text), None, problem)


def _id_of_refused(text: str) -> RequestId:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return RequestId(f"refused-{digest[:_DIGEST_CHARACTERS]}")


def write_request(verb: Verb, id_: RequestId) -> str:
    """The annotation's value."""
    return f"{verb}/{id_}"
