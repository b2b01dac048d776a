"""Answers the request of a person who accepts that objects of this node's runtimes are gone: the end of a freeze by mass
absence where they will not come back, because they were applied anew (as other lives), or given up.

One of the handlers of the agent's `NodeRequests`. Nothing is removed by it: the data stays an orphan's, kept and listed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from perdure.api.names import Uid
from perdure.api.request import RequestId
from perdure.api.runtime import RequestStatus
from perdure.plan.world import Code, Outcome
from perdure.reconcile.guards import Guards
from perdure.reconcile.node_requests import said
from perdure.reconcile.ports.errors import ApiUnavailable, PortError
from perdure.reconcile.ports.journal import Journal

MAX_NAMED = 10
"""Runtimes that the answer names; the node's log and `perdure nodes -o wide` have them all."""


class AbsenceAcceptance:
    """`look` lists everything again and has the guards count; `tell` reports the node and wakes what has waited."""

    def __init__(
        self,
        guards: Guards,
        journal: Journal,
        look: Callable[[], Awaitable[object]],
        tell: Callable[[], Awaitable[None]],
    ) -> None:
        self._guards = guards
        self._journal = journal
        self._look = look
        self._tell = tell

    async def answer(self, request: RequestId) -> RequestStatus:
        """Accept what is absent now. Raises `ApiUnavailable` while that cannot be known."""
        try:
            await self._look()
            accepted = await self._guards.accept_absence()
        except ApiUnavailable:
            raise
        except PortError as error:
            return said(request, Outcome.FAILURE, error.reason.value, f"{error}. Nothing is accepted; ask again")
        await self._tell()
        if not accepted:
            message = "no runtime of this node is without its object"
            return said(request, Outcome.SUCCESS, Code.REPLAY_NO_OP.value, message)
        return said(request, Outcome.SUCCESS, "", self._what_it_means(accepted))

    def _what_it_means(self, accepted: frozenset[Uid]) -> str:
        records = [self._journal.record(uid) for uid in accepted]
        names = sorted(f"{record.ref} (uid {record.ref.uid})" for record in records if record is not None)
        named = ", ".join(names[:MAX_NAMED]) + (", …" if len(names) > MAX_NAMED else "")
        return (
            f"{len(accepted)} runtimes without an object are accepted as gone and freeze nothing any more: {named}. What "
            "is there of them is kept as it is; `perdure nodes -o wide` lists it"
        )
