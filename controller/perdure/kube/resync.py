"""Lists everything every few minutes and compares it with the cache: heals deletions and changes that a watch lost.

kopf never notices an object that was deleted while its watch was broken (it lists what exists and forgets the rest).
What is missing is only reported, all of it at once: whoever gets the report can tell one deletion from a cluster that
is not the one it was.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from perdure.api.names import Kind, Uid
from perdure.kube.cache import ListDifference, RuntimeCache
from perdure.reconcile.ports.cluster import Cluster
from perdure.reconcile.ports.errors import ApiUnavailable
from perdure.telemetry.metrics import Metrics

FIRST_SECONDS = 60.0
INTERVAL_SECONDS = 300.0
_JITTER = 0.2

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ResyncReport:
    """One complete look at all kinds. `missing`: known before, not listed now, gone or not."""

    missing: frozenset[Uid]
    known: int
    """Runtimes that were known before the look."""
    listed: int


class Resync:
    """`on_report` is called after each complete look, also if nothing is missing; never after a look that failed."""

    def __init__(
        self,
        cluster: Cluster,
        cache: RuntimeCache,
        metrics: Metrics,
        on_report: Callable[[ResyncReport], Awaitable[None]],
    ) -> None:
        self._cluster = cluster
        self._cache = cache
        self._metrics = metrics
        self._on_report = on_report

    async def once(self) -> ResyncReport:
        """Look now. Raises `ApiUnavailable` if any kind could not be listed entirely; then nothing is reported."""
        mark = self._cache.mark()
        lists = {kind: await self._cluster.list_uids(kind) for kind in Kind}
        differences = {kind: self._cache.compare(kind, listed, mark) for kind, listed in lists.items()}
        for kind, difference in differences.items():
            self._count(kind, difference)
        report = ResyncReport(
            missing=frozenset[Uid]().union(*(difference.missing for difference in differences.values())),
            known=sum(difference.known for difference in differences.values()),
            listed=sum(len(listed) for listed in lists.values()),
        )
        await self._on_report(report)
        return report

    async def run(self, first: float = FIRST_SECONDS, interval: float = INTERVAL_SECONDS) -> None:
        """Look after `first` seconds, then every `interval`, both give or take a fifth, until cancelled."""
        wait = first
        while True:
            await asyncio.sleep(wait * random.uniform(1 - _JITTER, 1 + _JITTER))
            wait = interval
            try:
                report = await self.once()
            except ApiUnavailable as error:
                log.warning("resync_not_possible", error=str(error))
            else:
                log.debug("resynced", known=report.known, listed=report.listed, missing=len(report.missing))

    def _count(self, kind: Kind, difference: ListDifference) -> None:
        found = {
            "missed_add": len(difference.added),
            "missed_change": len(difference.changed),
            "missed_delete": len(difference.missing),
        }
        for name, count in found.items():
            if count:
                self._metrics.relist_differences.labels(kind=kind.value, difference=name).inc(count)
