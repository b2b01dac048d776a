"""What was read of namespaces a moment ago: a burst of starts in one, or many runtimes of one that are refused again and
again, read it once. Used by the agent's task steps and by the controller's binder."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

from perdure.api.names import NamespaceUid
from perdure.reconcile.ports.cluster import NamespaceFacts

NAMESPACE_SECONDS = 10.0
"""How late a change of a namespace's Pod Security label may count: whatever comes after this has it."""


class RecentNamespaces:
    """`read` asks the API server; when it raises, nothing is remembered of that."""

    def __init__(self, read: Callable[[str], Awaitable[NamespaceFacts]]) -> None:
        self._read = read
        self._known: dict[str, tuple[float, NamespaceFacts]] = {}

    async def get(self, name: str, *, uid: NamespaceUid | None = None, since: float = -math.inf) -> NamespaceFacts:
        """The namespace as it was at most `NAMESPACE_SECONDS` ago.

        It may have been deleted and created anew in that time, and then it is another one with other data. Who knows
        its `uid`, or since when (the loop's time) there is something in it, says so, and what does not fit that is read
        again. Raises what `read` raises.
        """
        now = asyncio.get_running_loop().time()
        if name in self._known:
            read_at, facts = self._known[name]
            if now - read_at <= NAMESPACE_SECONDS and read_at > since and uid in (None, facts.uid):
                return facts
        facts = await self._read(name)
        self._known = {other: known for other, known in self._known.items() if now - known[0] <= NAMESPACE_SECONDS}
        self._known[name] = now, facts
        return facts
