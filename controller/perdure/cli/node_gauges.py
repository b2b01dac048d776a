"""Shows how a node is, every few seconds: what waits, which phases its runtimes are in, and whether it is frozen.

Run by the node's half, from what this process has in memory: it needs neither API server, engine nor ledger.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import NoReturn

from perdure.api.conditions import Reason
from perdure.api.names import Uid
from perdure.reconcile.guards import Guards
from perdure.reconcile.ports.cluster import Objects
from perdure.reconcile.ports.journal import Journal
from perdure.reconcile.queue import KeyedQueue
from perdure.telemetry.metrics import Metrics

SHOW_SECONDS = 5.0
_FREEZES = (Reason.MASS_ABSENCE, Reason.IDENTITY_CHANGED)


@dataclass(frozen=True, slots=True)
class Gauged:
    """What is looked at."""

    objects: Objects
    queue: KeyedQueue[Uid]
    journal: Journal
    guards: Guards


class NodeGauges:
    """One per agent."""

    def __init__(self, metrics: Metrics, gauged: Gauged) -> None:
        self._metrics = metrics
        self._gauged = gauged
        self._phases: Counter[tuple[str, str]] = Counter()

    async def run(self) -> NoReturn:
        """Until cancelled."""
        while True:
            self.show()
            await asyncio.sleep(SHOW_SECONDS)

    def show(self) -> None:
        """Once, now."""
        metrics, gauged = self._metrics, self._gauged
        metrics.queue_depth.set(len(gauged.queue))
        metrics.oldest_key_seconds.set(gauged.queue.oldest_age())
        metrics.journal_unsent_rows.set(len(gauged.journal.unsent()))
        metrics.journal_refused_rows.set(len(gauged.journal.refused()))
        freeze = gauged.guards.freeze
        for reason in _FREEZES:
            frozen = freeze is not None and freeze.reason is reason
            metrics.frozen.labels(reason=reason.value).set(1 if frozen else 0)
        self._show_phases()

    def _show_phases(self) -> None:
        """Runtimes by kind and phase; a pair that nothing is in any more goes to 0."""
        now: Counter[tuple[str, str]] = Counter()
        for uid in self._gauged.objects.uids():
            runtime = self._gauged.objects.get(uid)
            if runtime is not None:
                now[runtime.kind.value, runtime.status.phase or "Pending"] += 1
        for kind, phase in self._phases | now:
            self._metrics.runtimes.labels(kind=kind, phase=phase).set(now[kind, phase])
        self._phases = now
