"""Handlers: as many at once as there are places, none that hangs at the others' expense, none that fails either."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.fakes.background import beside

from perdure.api.names import Uid
from perdure.reconcile.queue import KeyedQueue
from perdure.reconcile.workers import Handle, aside, work_with

WAIT_SECONDS = 20.0


@pytest.fixture
async def queue() -> AsyncIterator[KeyedQueue[Uid]]:
    queue = KeyedQueue[Uid]()
    yield queue
    queue.close()


class Handled:
    """A handler whose calls end when they are let go."""

    def __init__(self) -> None:
        self.begun: list[Uid] = []
        self.crashes: list[str] = []
        self._one_more = asyncio.Event()
        self.gates: dict[Uid, asyncio.Event] = {}

    async def handle(self, uid: Uid) -> None:
        self.begun.append(uid)
        self._one_more.set()
        await self.gates.setdefault(uid, asyncio.Event()).wait()

    async def until_begun(self, *uids: str) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while self.begun != list(uids):
                self._one_more.clear()
                await self._one_more.wait()

    def crashed(self, error: str) -> None:
        self.crashes.append(error)
        self._one_more.set()

    async def until_crashed(self, times: int) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while self.crashes != ["ZeroDivisionError"] * times:
                self._one_more.clear()
                await self._one_more.wait()

    def let_go(self, uid: str) -> None:
        self.gates[Uid(uid)].set()


@asynccontextmanager
async def working(
    count: int, queue: KeyedQueue[Uid], handled: Handled, handle: Handle | None = None
) -> AsyncIterator[None]:
    async with beside(work_with(count, queue, handle or handled.handle, handled.crashed)):
        yield


async def quiet() -> None:
    """Whatever could go on now has."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_no_more_at_once_than_there_are_places(queue: KeyedQueue[Uid]) -> None:
    handled = Handled()
    for uid in "abc":
        queue.add(Uid(uid))
    async with working(2, queue, handled):
        await handled.until_begun("a", "b")
        await quiet()
        assert handled.begun == ["a", "b"]
        handled.let_go("b")
        await handled.until_begun("a", "b", "c")


async def test_who_is_aside_holds_no_place_and_comes_back_to_one(queue: KeyedQueue[Uid]) -> None:
    handled, turn, back = Handled(), asyncio.Event(), list[Uid]()

    async def wait_for_a_turn(uid: Uid) -> None:
        if uid in "ab":
            handled.begun.append(uid)
            await asyncio.gather(*(wait_aside(turn) for _ in range(2)))
            back.append(uid)
        await handled.handle(uid)

    for uid in "abcd":
        queue.add(Uid(uid))
    async with working(1, queue, handled, wait_for_a_turn):
        await handled.until_begun("a", "b", "c")
        queue.add(Uid("a"))
        turn.set()
        await quiet()
        assert (handled.begun, back) == (list("abc"), []), "they wait for a place, and no key is handled twice at once"
        handled.let_go("c")
        await handled.until_begun(*"abcd")
        handled.let_go("d")
        await handled.until_begun(*"abcda")
        assert back == ["a"], "one place, one handler"


async def wait_aside(turn: asyncio.Event) -> None:
    async with aside():
        await turn.wait()


async def test_what_fails_aside_fails_in_a_place(queue: KeyedQueue[Uid]) -> None:
    handled = Handled()

    async def fail(uid: Uid) -> None:
        async with aside():
            handled.begun.append(uid)
            raise ZeroDivisionError

    for uid in "abc":
        queue.add(Uid(uid))
    async with working(1, queue, handled, fail):
        await handled.until_crashed(3)
    assert handled.begun == list("abc")


async def test_a_step_that_comes_back_to_an_ended_handler_takes_no_place(queue: KeyedQueue[Uid]) -> None:
    handled, turn, left = Handled(), asyncio.Event(), list[asyncio.Task[None]]()

    async def fail_beside_a_step(uid: Uid) -> None:
        left.append(asyncio.create_task(wait_aside(turn)))
        await asyncio.sleep(0)
        raise ZeroDivisionError

    async with working(1, queue, handled, fail_beside_a_step):
        queue.add(Uid("a"))
        await handled.until_crashed(1)
        turn.set()
        await asyncio.gather(*left)
        queue.add(Uid("b"))
        await handled.until_crashed(2)
    await asyncio.gather(*left)


async def test_aside_does_nothing_where_there_are_no_places() -> None:
    async with aside():
        pass


async def test_a_defect_is_survived_and_counted(queue: KeyedQueue[Uid]) -> None:
    handled = Handled()

    async def fail(uid: Uid) -> None:
        await handled.handle(uid) if uid == "b" else None
        raise ZeroDivisionError

    queue.add(Uid("a"))
    queue.add(Uid("b"))
    async with working(1, queue, handled, fail):
        await handled.until_begun("b")
        assert handled.crashes == ["ZeroDivisionError"]


async def test_its_end_ends_what_is_under_way(queue: KeyedQueue[Uid]) -> None:
    ended: list[Uid] = []

    async def handle(uid: Uid) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(uid)

    queue.add(Uid("a"))
    queue.add(Uid("b"))
    async with working(2, queue, Handled(), handle):
        await quiet()
    assert sorted(ended) == ["a", "b"]
