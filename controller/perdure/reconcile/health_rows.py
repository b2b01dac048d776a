"""Health events on their way into the journal: numbered, so that each is one row in the ledger however often it is written.

Called by the steps that journal a record: what happened and what the record says of it are one commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import structlog

from perdure.plan.health import MESSAGE_CHARACTERS, HealthEvent
from perdure.plan.operations import health_event_id
from perdure.plan.world import Record
from perdure.reconcile.hands import Hands
from perdure.reconcile.ports.journal import HealthRow

log = structlog.get_logger(__name__)


def told(record: Record, events: Sequence[HealthEvent], at: float) -> tuple[Record, tuple[HealthRow, ...]]:
    """The record that has told them, and their rows. `at`: seconds since the epoch."""
    rows = tuple(
        HealthRow(
            id=health_event_id(record.ref.uid, record.numbered_from, record.health_events + n),
            ref=record.ref,
            kind=event.kind,
            at=at,
            message=event.message[:MESSAGE_CHARACTERS],
            probe=event.probe,
            code=event.code,
        )
        for n, event in enumerate(events, start=1)
    )
    return replace(record, health_events=record.health_events + len(rows)), rows


def tell(hands: Hands, rows: Sequence[HealthRow]) -> None:
    """To be called once the rows are journalled: they go to the ledger, the log and the metrics."""
    if rows:
        hands.outbox.poke()
    for row in rows:
        hands.probe.happened(row.kind.value)
        log.info(
            row.kind.value,
            runtime=str(row.ref),
            uid=row.ref.uid,
            **({"probe": row.probe.value} if row.probe is not None else {}),
            **({"code": row.code} if row.code is not None else {}),
            **({"message": row.message} if row.message else {}),
        )
