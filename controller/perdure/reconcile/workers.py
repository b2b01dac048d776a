"""Runs handlers of keys: the one place per process where any exception is survived, counted and logged with its key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar

import structlog

from perdure.api.names import Uid
from perdure.reconcile.queue import KeyedQueue

CRASH_RETRY_SECONDS = 30.0

Handle = Callable[[Uid], Awaitable[None]]
log = structlog.get_logger(__name__)


async def work_with(count: int, queue: KeyedQueue[Uid], handle: Handle, crashed: Callable[[str], None]) -> None:
    """Handle keys as they come, `count` at once, until cancelled; those that are `aside` are not counted."""
    places = asyncio.Semaphore(count)
    async with asyncio.TaskGroup() as group:
        while True:
            await queue.not_empty()  # without holding a place that somebody who was aside wants back
            await places.acquire()
            uid = await queue.get()
            group.create_task(_work(queue, uid, handle, crashed, _Place(places)), name=f"handling {uid}")


@asynccontextmanager
async def aside() -> AsyncIterator[None]:
    """For what waits for its turn elsewhere, and may for hours: meanwhile other keys are handled in this one's place.

    Not for requests to the API server, the ledger or the engine: there the places are what keeps a slow answer from
    making ever more questions. Does nothing outside of a handler.
    """
    place = _PLACE.get()
    if place is None:
        yield
        return
    place.leave()
    try:
        yield
    except Exception:
        await place.come_back()
        raise
    await place.come_back()  # not where it is cancelled: then the handler ends, and needs no place for that


class _Place:
    """One of those that there are, had by one handler, several steps of which may be aside at once."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places = places
        self._away = 0
        self._held = True
        self._over = False

    def leave(self) -> None:
        self._away += 1
        self._give_back()

    async def come_back(self) -> None:
        self._away -= 1
        if self._away or not self._needed():
            return
        await self._places.acquire()
        if self._needed():
            self._held = True
        else:
            self._places.release()

    def _needed(self) -> bool:
        """Not where another step has one for all, nor where one was a defect: nobody would give it back."""
        return not self._held and not self._over

    def end(self) -> None:
        self._over = True
        self._give_back()

    def _give_back(self) -> None:
        if self._held:
            self._held = False
            self._places.release()


_PLACE: ContextVar[_Place | None] = ContextVar("place", default=None)


async def _work(
    queue: KeyedQueue[Uid], uid: Uid, handle: Handle, crashed: Callable[[str], None], place: _Place
) -> None:
    """A defect in one key's handling costs that key a pause, and no other anything."""
    _PLACE.set(place)
    try:
        await handle(uid)
    except Exception as error:
        log.exception("handler_crashed", uid=uid)
        crashed(type(error).__name__)
        queue.add_in(uid, CRASH_RETRY_SECONDS)
    finally:
        queue.done(uid)
        place.end()
