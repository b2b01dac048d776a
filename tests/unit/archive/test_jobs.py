"""What the worker says fits into a line, however large the layer and however odd the message."""

from __future__ import annotations

import msgspec
import pytest

from perdure.archive.faults import FaultKind
from perdure.archive.jobs import LONGEST_ANSWER, LONGEST_MESSAGE, Answer, Done, Failed, Progress

MOST = 2**63


@pytest.mark.parametrize(
    "answer",
    [
        Progress(),
        Done(sha256="f" * 64, bytes=MOST, uncompressed_bytes=MOST, entries=MOST, empty=False),
        *(
            Failed(FaultKind.STORE_UNAVAILABLE, letter * LONGEST_MESSAGE)
            for letter in ("a", "\0", "\n", "é", "\U0001f512")
        ),
    ],
)
def test_every_answer_fits_into_a_line(answer: Answer) -> None:
    line = msgspec.json.encode(answer) + b"\n"
    assert len(line) < LONGEST_ANSWER
    assert line.count(b"\n") == 1
    assert msgspec.json.decode(line, type=Answer) == answer
