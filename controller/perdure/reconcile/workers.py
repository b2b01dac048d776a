"""Runs handlers of keys: the one place per process where any exception is survived, counted and logged with its key."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from perdure.api.names import Uid
from perdure.reconcile.queue import KeyedQueue

CRASH_RETRY_SECONDS = 30.0

log = structlog.get_logger(__name__)


async def work(
    queue: KeyedQueue[Uid], handle: Callable[[Uid], Awaitable[None]], crashed: Callable[[str], None]
) -> None:
    """One worker: takes keys for ever. A defect in one key's handling costs that key a pause, and no other anything."""
    while True:
        uid = await queue.get()
        try:
            await handle(uid)
        except Exception as error:
            log.exception("handler_crashed", uid=uid)
            crashed(type(error).__name__)
            queue.add_in(uid, CRASH_RETRY_SECONDS)
        finally:
            queue.done(uid)


async def work_with(
    count: int, queue: KeyedQueue[Uid], handle: Callable[[Uid], Awaitable[None]], crashed: Callable[[str], None]
) -> None:
    """`count` workers on one queue, until cancelled."""
    async with asyncio.TaskGroup() as group:
        for n in range(count):
            group.create_task(work(queue, handle, crashed), name=f"worker-{n}")
