"""An event loop whose clock jumps to the next timer instead of waiting for it: minutes of back-off cost nothing."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine, Mapping
from typing import Any

START = 1_800_000_000.0


class NothingWillHappen(RuntimeError):
    """Every task waits, and no timer is set: the code under test hangs."""


class _Jump(selectors.BaseSelector):
    """Knows its files (the loop's own wake-up socket) and never looks at them."""

    def __init__(self) -> None:
        self.now = START
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = selectors.SelectorKey(fileobj, fileobj, events, data)
        self._keys[fileobj] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise NothingWillHappen("no task is ready and no timer is set")
        self.now += timeout
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class JumpingLoop(asyncio.SelectorEventLoop):
    """`time()` is seconds since the epoch, which no test sets: the wall clock of a `Survivors` may be wrong by some seconds."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)
        # A float of today's size cannot tell nanoseconds: a timer that is missed by rounding would never fire.
        self._clock_resolution = 1e-5

    def time(self) -> float:
        return self._jump.now


def jump_through(scene: Coroutine[Any, Any, None]) -> None:
    """The whole scene on a clock that jumps: nothing in it takes real time."""
    loop = JumpingLoop()
    try:
        loop.run_until_complete(scene)
    finally:
        loop.close()
