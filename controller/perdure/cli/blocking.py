"""A command is a plain function; the parts that it asks are asynchronous."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


def block_on(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run `coroutine` to its end on an event loop of its own; the loop that the thread may have stays as it is."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(coroutine)
