"""Runtimes that fit nowhere, or cannot have their ports: how long each waits before the binder tries it again."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from perdure.api.names import Uid
from perdure.reconcile.queue import KeyedQueue

FIRST_SECONDS = 5.0
LONGEST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Refusal:
    """The newest of one runtime. `at`: the loop's time; `delay`: seconds until it is tried again though nothing changed."""

    generation: int
    at: float
    delay: float


class Refusals:
    """Of what was refused and was neither placed since nor is gone. Keys go to `queue`."""

    def __init__(self, queue: KeyedQueue[Uid]) -> None:
        self._queue = queue
        self._newest: dict[Uid, _Refusal] = {}

    def add(self, uid: Uid, generation: int) -> None:
        """It is tried again after its delay, which doubles when it was waited for: who was woken sooner is not to wait
        longer for that. Another generation of the object begins anew."""
        now, before, delay = asyncio.get_running_loop().time(), self._newest.get(uid), FIRST_SECONDS
        if before is not None and before.generation == generation:
            was_waited_for = now - before.at >= before.delay
            delay = min(2 * before.delay, LONGEST_SECONDS) if was_waited_for else before.delay
        self._newest[uid] = _Refusal(generation, now, delay)
        self._queue.add_in(uid, delay)

    def forget(self, uid: Uid) -> None:
        self._newest.pop(uid, None)

    def known_since(self, uid: Uid) -> float:
        """The loop's time since which it is certain that the runtime is there: of its refusal, or now."""
        refusal = self._newest.get(uid)
        return refusal.at if refusal is not None else asyncio.get_running_loop().time()

    def wake(self) -> None:
        """Somebody has left a place or a port. Not at once: many may leave together."""
        for uid in self._newest:
            self._queue.add_in(uid, FIRST_SECONDS)
