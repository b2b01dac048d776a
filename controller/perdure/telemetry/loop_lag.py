"""How late the event loop is: the first thing to look at when everything is slow at once.

A process runs `measure` as one of its tasks. The same task keeps the heartbeat that `/livez` looks at: a loop that
stands still, or a task group that is gone while the process is not, shows there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

INTERVAL_SECONDS = 0.25


class Histogram(Protocol):
    """Where a lag is put, in seconds."""

    def observe(self, amount: float) -> None: ...


class Heartbeat:
    """When the loop was last seen alive. `clock` counts seconds and never goes backwards."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last = clock()

    def beat(self) -> None:
        self._last = self._clock()

    @property
    def age(self) -> float:
        """Seconds since the last beat."""
        return self._clock() - self._last


async def measure(lag: Histogram, heartbeat: Heartbeat, interval: float = INTERVAL_SECONDS) -> None:
    """Ask to be woken every `interval` seconds and note how much later it was. Runs until it is cancelled."""
    clock = asyncio.get_running_loop().time
    while True:
        due = clock() + interval
        await asyncio.sleep(interval)
        lag.observe(max(0.0, clock() - due))
        heartbeat.beat()
