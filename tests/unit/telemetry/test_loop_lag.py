"""The loop's lag is measured, and the heartbeat stops with the task that keeps it."""

from __future__ import annotations

import asyncio
import time

from perdure.telemetry.loop_lag import Heartbeat, measure


class Lags:
    """Collects what is observed and says when there is something new."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.queue: asyncio.Queue[float] = asyncio.Queue()

    def observe(self, amount: float) -> None:
        self.seen.append(amount)
        self.queue.put_nowait(amount)


async def test_a_blocked_loop_shows_as_lag() -> None:
    lags = Lags()
    task = asyncio.create_task(measure(lags, Heartbeat(time.monotonic), interval=0.01))
    await asyncio.wait_for(lags.queue.get(), 10)
    time.sleep(0.2)  # noqa: ASYNC251 - blocking the loop is what is measured
    blocked = await asyncio.wait_for(lags.queue.get(), 10)
    task.cancel()
    assert blocked >= 0.15
    assert all(lag >= 0 for lag in lags.seen)


async def test_each_measurement_beats_the_heart() -> None:
    now = 100.0
    heartbeat = Heartbeat(lambda: now)
    now = 150.0
    assert heartbeat.age == 50.0
    lags = Lags()
    task = asyncio.create_task(measure(lags, heartbeat, interval=0.001))
    await asyncio.wait_for(lags.queue.get(), 10)
    task.cancel()
    assert heartbeat.age == 0.0
