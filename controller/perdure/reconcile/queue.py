"""A keyed queue: one entry per key however often it is added, one worker per key at a time, and due times.

The intake adds keys for every event, workers take them; what happened in between is not queued but observed. This is
where events coalesce, so the planner always sees the latest state and never a backlog.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

K = TypeVar("K")


class KeyedQueue(Generic[K]):
    """Used from one event loop only. Not bounded: it holds at most one entry per known key."""

    def __init__(self) -> None:
        self._ready: deque[K] = deque()
        self._queued: dict[K, float] = {}
        """Keys in `_ready`, with the loop time at which they were added."""
        self._in_flight: set[K] = set()
        self._again: set[K] = set()
        """Keys added while in flight: they go back to `_ready` when their worker is done."""
        self._due: dict[K, tuple[float, asyncio.TimerHandle]] = {}
        self._wakeup = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ready)

    def oldest_age(self) -> float:
        """Seconds that the oldest ready key has waited; 0 when none waits."""
        if not self._ready:
            return 0.0
        return asyncio.get_running_loop().time() - self._queued[self._ready[0]]

    def add(self, key: K) -> None:
        """Make the key ready now. A due time it had is dropped: whoever handles it sets the next one."""
        due = self._due.pop(key, None)
        if due is not None:
            due[1].cancel()
        if key in self._in_flight:
            self._again.add(key)
        elif key not in self._queued:
            self._queued[key] = asyncio.get_running_loop().time()
            self._ready.append(key)
            self._wakeup.set()

    def add_in(self, key: K, delay: float) -> None:
        """Make the key ready in `delay` seconds at the latest; the earlier of two due times wins."""
        if delay <= 0:
            self.add(key)
            return
        loop = asyncio.get_running_loop()
        when = loop.time() + delay
        due = self._due.get(key)
        if due is not None:
            if due[0] <= when:
                return
            due[1].cancel()
        self._due[key] = (when, loop.call_at(when, self._fire, key))

    def _fire(self, key: K) -> None:
        self._due.pop(key, None)
        self.add(key)

    async def not_empty(self) -> None:
        """Wait until a key is ready."""
        while not self._ready:
            self._wakeup.clear()
            await self._wakeup.wait()

    async def get(self) -> K:
        """The next key, which is in flight from now on until `done`."""
        await self.not_empty()
        key = self._ready.popleft()
        del self._queued[key]
        self._in_flight.add(key)
        return key

    def done(self, key: K) -> None:
        """The worker has finished with the key; if it was added meanwhile, it is ready again."""
        self._in_flight.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def close(self) -> None:
        """Cancel all due times, so that nothing keeps the loop busy."""
        for _, handle in self._due.values():
            handle.cancel()
        self._due.clear()
