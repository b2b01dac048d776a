"""Waiting for what somebody else brings about: a condition, a deadline, and the last thing that was seen.

Called by the rest of the harness and by tests; nothing here sleeps for a time that was guessed.
"""

import time
from collections.abc import Callable
from typing import TypeVar

POLL_SECONDS = 0.05
WAIT_SECONDS = 180.0
"""Long enough for a busy machine: a wait that succeeds never takes longer than what it waits for."""

Seen = TypeVar("Seen")


def eventually(
    look: Callable[[], Seen], what: str, holds: Callable[[Seen], bool] = bool, seconds: float = WAIT_SECONDS
) -> Seen:
    """Look again and again until what is seen `holds`, and return it. Fails the test with what was seen last."""
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if holds(seen):
            return seen
        if time.monotonic() > deadline:
            raise AssertionError(f"not so after {seconds:.0f} s: {what}; last seen: {seen!r}")
        time.sleep(POLL_SECONDS)


def always(look: Callable[[], Seen], what: str, holds: Callable[[Seen], bool], until: Callable[[], bool]) -> None:
    """Hold that what is seen `holds` at every look, until something else has happened (itself with a deadline)."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        finished = until()
        seen = look()
        assert holds(seen), f"{what}; seen: {seen!r}"
        if finished:
            return
        assert time.monotonic() < deadline, f"waiting while {what}: the end did not come"
        time.sleep(POLL_SECONDS)
