"""Failures of the last attempt by key: when it may be tried again, and what the planner is told about it meanwhile."""

from __future__ import annotations

import random
from dataclasses import dataclass

from perdure.api.names import Uid
from perdure.plan.world import Failure
from perdure.reconcile.ports.errors import LeaseBusy, PortError

FIRST_DELAY_SECONDS = 0.5
MAX_DELAY_SECONDS = 60.0
BUSY_SECONDS = 10.0
"""A lease may be given back at any time: it is looked at so often until it runs out."""
AFTER_EXPIRY_SECONDS = 0.2
"""Whoever died with a lease is succeeded this soon after it ran out."""


@dataclass(frozen=True, slots=True)
class _Entry:
    failure: Failure
    generation: int


class Retries:
    """In memory: after a restart everything is tried again at once, which is what a person who restarts wants."""

    def __init__(self, jitter: random.Random | None = None) -> None:
        self._entries: dict[Uid, _Entry] = {}
        self._jitter = jitter or random.Random()

    def failed(self, uid: Uid, generation: int, step: str, error: PortError, now: float) -> Failure:
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
            retry_at=now + delay,
            attempts=attempts,
        )
        self._entries[uid] = _Entry(failure, generation)
        return failure

    def failure(self, uid: Uid, generation: int) -> Failure | None:
        """The failure that still counts: an edit of the spec wipes it."""
        entry = self._entries.get(uid)
        return entry.failure if entry is not None and entry.generation == generation else None

    def succeeded(self, uid: Uid) -> None:
        self._entries.pop(uid, None)
