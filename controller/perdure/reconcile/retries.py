"""Failures of the last attempt by key: when it may be tried again, and what the planner is told about it meanwhile."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from perdure.api.names import Uid
from perdure.plan.world import Failure
from perdure.reconcile.ports.errors import LeaseBusy, PortError

FIRST_DELAY_SECONDS = 0.5
MAX_DELAY_SECONDS = 60.0
BUSY_SECONDS = 10.0
"""A lease may be given back at any time: it is looked at so often until it runs out."""
AFTER_EXPIRY_SECONDS = 0.2
"""Whoever died with a lease is succeeded this soon after it ran out."""

CLOCK_SET_SECONDS = 0.5
"""The two clocks drift apart by less between two looks; more means that one of them was set."""


@dataclass(frozen=True, slots=True)
class _Entry:
    failure: Failure
    generation: int
    due: float
    """By the monotonic clock: a wall clock that is set moves no retry."""


class Retries:
    """In memory: after a restart everything is tried again at once, which is what a person who restarts wants."""

    def __init__(
        self,
        jitter: random.Random | None = None,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entries: dict[Uid, _Entry] = {}
        self._jitter = jitter or random.Random()
        self._now = now
        self._monotonic = monotonic

    def failed(self, uid: Uid, generation: int, step: str, error: PortError) -> Failure:
        """Remember the failure; delays double from 0.5 s to 60 s, each shortened by up to a fifth. A busy
        lease is no failure: it is waited for."""
        before = self._entries.get(uid)
        attempts = before.failure.attempts + 1 if before is not None and before.generation == generation else 1
        soon = FIRST_DELAY_SECONDS * 2 ** min(attempts - 1, 16)
        delay = MAX_DELAY_SECONDS if error.of_node else min(MAX_DELAY_SECONDS, soon)
        delay *= self._jitter.uniform(0.8, 1.0)
        if isinstance(error, LeaseBusy):
            delay = min(BUSY_SECONDS, error.expires_in + AFTER_EXPIRY_SECONDS)
        failure = Failure(
            reason=error.reason,
            message=str(error),
            step=step,
            user_error=error.user_error,
            blocks_data=error.blocks_data,
            retry_at=self._now() + delay,
            attempts=attempts,
        )
        self._entries[uid] = _Entry(failure, generation, self._monotonic() + delay)
        return failure

    def failure(self, uid: Uid, generation: int) -> Failure | None:
        """The failure that still counts: an edit of the spec wipes it. `retry_at` follows the wall clock where that was
        set; else it stays, so that a status that shows it does."""
        entry = self._entries.get(uid)
        if entry is None or entry.generation != generation:
            return None
        retry_at = self._now() + entry.due - self._monotonic()
        if abs(retry_at - entry.failure.retry_at) > CLOCK_SET_SECONDS:
            entry = replace(entry, failure=replace(entry.failure, retry_at=retry_at))
            self._entries[uid] = entry
        return entry.failure

    def succeeded(self, uid: Uid) -> None:
        self._entries.pop(uid, None)
