"""Enters the archives of this node's store into the ledger's catalogue again, when a person asks the node to.

For a ledger that was restored from a backup: what was archived since then is in the store and unknown. Manifests are the
truth about archives, but only once the archive itself was read and is what its manifest says. Nothing is removed; what is
odd is named and left. One of the handlers of the agent's `NodeRequests`; what a kill cut off is taken up again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import structlog

from perdure.api.names import RuntimeRef, Uid
from perdure.api.request import UNDER_WAY, RequestId
from perdure.api.runtime import RequestStatus
from perdure.plan.certainty import Absent, Present
from perdure.plan.world import ArchiveFacts, Code, Outcome
from perdure.reconcile.hands import Hands, Place
from perdure.reconcile.node_requests import said
from perdure.reconcile.ports.archives import StoredArchive
from perdure.reconcile.ports.errors import ArchiveCorrupt, LeaseBusy, PortError, StoreError
from perdure.reconcile.ports.ledger import Catalogued

PROGRESS_SECONDS = 10.0
MAX_TOLD = 5
"""Oddities that the answer names; the log names all."""

_WHY_LEFT = {
    Catalogued.OTHER: "the catalogue has another archive under this sequence",
    Catalogued.QUARANTINED: "it is in quarantine",
    Catalogued.PURGED: "it was purged, or is to be",
    Catalogued.TOO_FAR: "its sequence is none that this ledger can have given out",
}

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Tally:
    """What was found so far."""

    counts: Counter[str] = field(default_factory=Counter)
    odd: list[str] = field(default_factory=list)

    def leave(self, path: str, why: str) -> None:
        self.counts["left"] += 1
        if len(self.odd) < MAX_TOLD:
            self.odd.append(f"{path}: {why}")
        log.warning("archive_left_alone", path=path, why=why)

    def __str__(self) -> str:
        counts = self.counts
        text = f"{counts['entered']} archives entered, {counts['known']} were known, {counts['left']} left alone"
        return f"{text}: {'; '.join(self.odd)}" if self.odd else text


class Reindexer:
    """One per agent."""

    def __init__(self, hands: Hands, place: Place) -> None:
        self._hands = hands
        self._place = place
        self._lease_key = Uid(f"reindex/{place.node_id}")

    async def answer(self, request: RequestId) -> RequestStatus:
        """Look through the store, and say what came of it. Raises no `PortError`: that is an answer, too."""
        tally = _Tally()
        try:
            async with self._hands.leases.kept(self._lease_key):
                await self._reindex(request, tally)
            await self._hands.leases.release(self._lease_key)
        except LeaseBusy as busy:
            return said(request, Outcome.FAILURE, Code.CONFLICT.value, str(busy))
        except PortError as error:
            self._hands.leases.drop(self._lease_key)
            message = f"{error}. Until then: {tally}. Ask again; what is entered stays"
            return said(request, Outcome.FAILURE, error.reason.value, message)
        return said(request, Outcome.SUCCESS, "", str(tally))

    async def _reindex(self, request: RequestId, tally: _Tally) -> None:
        clock = asyncio.get_running_loop()
        inventory = await self._hands.engine.inventory()
        here = frozenset(owned.ref.uid for owned in inventory.it) if isinstance(inventory, Present) else None
        shown_at = clock.time()
        async for found, is_newest in _newest_told(self._hands.archives.survey(self._place.installation)):
            await self._take(found, is_newest, request, here, tally)
            if clock.time() - shown_at >= PROGRESS_SECONDS:
                shown_at = clock.time()
                going_on = RequestStatus(id=request, outcome=UNDER_WAY, message=str(tally)[:1024])
                await self._hands.cluster.answer_node(self._place.node_name, going_on)

    async def _take(
        self, found: StoredArchive, is_newest: bool, request: RequestId, here: frozenset[Uid] | None, tally: _Tally
    ) -> None:
        """Raises `PortError` where the ledger is away: what is not an archive's own fault ends it all."""
        facts, ref = found.facts, found.ref
        if facts is None or ref is None:
            tally.leave(found.path, found.problem)
            return
        known = await self._hands.ledger.catalogued(facts)
        if known in (Catalogued.NOTHING, Catalogued.UNFINISHED):
            try:
                await self._hands.archives.verify(facts)
            except (ArchiveCorrupt, StoreError) as error:
                tally.leave(found.path, str(error))
                return
            known = await self._enter(facts, ref, is_newest, request, here)
            tally.counts["entered"] += known is Catalogued.SAME
        else:
            tally.counts["known"] += known is Catalogued.SAME
        if known is not Catalogued.SAME:
            tally.leave(found.path, _WHY_LEFT.get(known, "somebody else is entering it"))

    async def _enter(
        self, facts: ArchiveFacts, ref: RuntimeRef, is_newest: bool, request: RequestId, here: frozenset[Uid] | None
    ) -> Catalogued:
        nothing_else = is_newest and await self._is_nothing_else_left(ref, here)
        lease = await self._hands.leases.hold(self._lease_key)
        known = await self._hands.ledger.enter_archive(
            facts, ref, request, self._place.node_name, lease, all_there_is=nothing_else
        )
        log.info("archive_entered", runtime=str(ref), uid=ref.uid, archive=facts.sequence, state=known.value)
        return known

    async def _is_nothing_else_left(self, ref: RuntimeRef, here: frozenset[Uid] | None) -> bool:
        """Whether that life's object was let go and nothing of it is on this node: then its data is in its archives.

        Its own finalizer says that its data was dealt with: it comes off when the ledger has that, or by a person's hand.
        """
        if here is None or ref.uid in here or self._hands.journal.record(ref.uid) is not None:
            return False
        return await self._hands.cluster.look_up(ref) == Absent()


async def _newest_told(survey: AsyncIterator[StoredArchive]) -> AsyncIterator[tuple[StoredArchive, bool]]:
    """Each with whether nothing newer of its life lies there, not even what is odd: that may hold what an older one lacks."""
    before: StoredArchive | None = None
    async for found in survey:
        if before is not None:
            yield before, before.path.rpartition("/")[0] != found.path.rpartition("/")[0]
        before = found
    if before is not None:
        yield before, True
