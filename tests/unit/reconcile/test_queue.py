"""One entry per key, one worker per key, and due times; on a clock that jumps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from tests.crash.clock import jump_through

from perdure.reconcile.queue import KeyedQueue


@pytest.fixture
def run() -> Callable[[Callable[[KeyedQueue[str]], Coroutine[Any, Any, None]]], None]:
    def runner(story: Callable[[KeyedQueue[str]], Coroutine[Any, Any, None]]) -> None:
        async def told() -> None:
            await story(KeyedQueue())

        jump_through(told())

    return runner


Run = Callable[[Callable[[KeyedQueue[str]], Coroutine[Any, Any, None]]], None]


def now() -> float:
    return asyncio.get_running_loop().time()


async def nothing_comes(queue: KeyedQueue[str], seconds: float = 1.0) -> bool:
    try:
        await asyncio.wait_for(queue.get(), seconds)
    except TimeoutError:
        return True
    return False


def test_a_key_that_is_added_often_comes_once(run: Run) -> None:
    async def story(queue: KeyedQueue[str]) -> None:
        for _ in range(5):
            queue.add("a")
        queue.add("b")
        assert len(queue) == 2
        assert [await queue.get(), await queue.get()] == ["a", "b"]
        assert await nothing_comes(queue)

    run(story)


def test_a_key_in_flight_comes_again_only_when_it_is_done(run: Run) -> None:
    async def story(queue: KeyedQueue[str]) -> None:
        queue.add("a")
        assert await queue.get() == "a"
        queue.add("a")
        queue.add("a")
        assert await nothing_comes(queue)
        queue.done("a")
        assert await queue.get() == "a"
        queue.done("a")
        assert await nothing_comes(queue)

    run(story)


def test_a_due_key_comes_at_its_time_and_the_earlier_time_wins(run: Run) -> None:
    async def story(queue: KeyedQueue[str]) -> None:
        began = now()
        queue.add_in("a", 30)
        queue.add_in("a", 10)
        queue.add_in("a", 20)
        assert await queue.get() == "a"
        assert now() - began == pytest.approx(10, abs=0.01)
        queue.done("a")
        assert await nothing_comes(queue, 60)

    run(story)


def test_adding_now_drops_the_due_time(run: Run) -> None:
    async def story(queue: KeyedQueue[str]) -> None:
        queue.add_in("a", 10)
        queue.add("a")
        assert await queue.get() == "a"
        queue.done("a")
        assert await nothing_comes(queue, 60)

    run(story)


def test_a_key_that_falls_due_in_flight_waits_for_its_worker(run: Run) -> None:
    async def story(queue: KeyedQueue[str]) -> None:
        queue.add("a")
        await queue.get()
        queue.add_in("a", 5)
        assert await nothing_comes(queue, 20)
        queue.done("a")
        assert await queue.get() == "a"

    run(story)


def test_every_waiting_worker_gets_a_key(run: Run) -> None:
    async def story(queue: KeyedQueue[str]) -> None:
        workers = [asyncio.create_task(queue.get()) for _ in range(3)]
        await asyncio.sleep(0)
        for key in "abc":
            queue.add(key)
        assert sorted(await asyncio.gather(*workers)) == ["a", "b", "c"]

    run(story)


def test_the_age_of_the_oldest_is_told(run: Run) -> None:
    async def story(queue: KeyedQueue[str]) -> None:
        assert queue.oldest_age() == 0
        queue.add("a")
        await asyncio.sleep(3)
        queue.add("b")
        assert queue.oldest_age() == pytest.approx(3, abs=0.01)

    run(story)


def test_a_closed_queue_has_nothing_due(run: Run) -> None:
    async def story(queue: KeyedQueue[str]) -> None:
        queue.add_in("a", 5)
        queue.close()
        assert await nothing_comes(queue, 60)

    run(story)
