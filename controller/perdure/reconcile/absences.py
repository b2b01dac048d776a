"""How long objects have been gone that nobody was seen deleting: one answer of the API server is not enough to believe it.

The observer asks after each such answer; in memory alone, so that a new process begins to count anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from perdure.api.names import Uid

RESYNCS = 2
"""The grace period, in full lists: more than one accident of a moment fits into."""


class Absences:
    """One per agent. `wake` is asked for another look after so many seconds."""

    def __init__(
        self,
        grace_seconds: float,
        wake: Callable[[Uid, float], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._grace = grace_seconds
        self._wake = wake
        self._monotonic = monotonic
        self._since: dict[Uid, float] = {}

    def confirmed(self, uid: Uid) -> bool:
        """The object was just proven gone: was it so before, at least the grace period ago?"""
        now = self._monotonic()
        left = self._since.setdefault(uid, now) + self._grace - now
        if left > 0:
            self._wake(uid, left)
        return left <= 0

    def over(self, uid: Uid) -> None:
        """It is there, or nothing is remembered of it any more."""
        self._since.pop(uid, None)
