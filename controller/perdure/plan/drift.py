"""The plan for a record whose object is gone although nobody was seen deleting it.

Absence never stops, removes or ends anything: what is on the node stays, as an orphan. But a record with nothing behind
it, neither object nor container nor data, is only noise; once that is certain, it is dropped. Asked by `deletion`.
"""

from __future__ import annotations

from perdure.api.phases import Phase
from perdure.plan.certainty import Absent, Present
from perdure.plan.operations import closing
from perdure.plan.steps import Dispose, Plan
from perdure.plan.world import Gone, LedgerFacts, Observed, Record, World

RETRY_SECONDS = 60.0
"""Nothing presses: the record harms nobody."""


def plan_absent(world: World, now: float) -> Plan:
    """Drop the record if its object was proven gone twice, nothing of it is on the node, and the ledger agrees that no
    data is missing."""
    record, observed = world.record, world.observed
    confirmed = isinstance(world.desired, Gone) and world.desired.confirmed
    if not confirmed or world.freeze is not None or not _may_be_dropped(record):
        return Plan()
    if world.failure is not None and now < world.failure.retry_at:
        return Plan(wake_at=world.failure.retry_at)
    if _is_anything_here(observed):
        return Plan()
    ledger = Present(LedgerFacts(released=True)) if record.released else observed.ledger
    if not _is_nothing_here(observed) or not isinstance(ledger, Present):
        return Plan(wake_at=now + RETRY_SECONDS)
    kept = _what_the_ledger_keeps(record, ledger.it)
    if kept is None:
        return Plan()
    done = closing(record, frozenset(), record.phase or Phase.REMOVED)
    if done is not None:
        return Plan(steps=(done,))
    return Plan(steps=(Dispose(f"its object is gone, and nothing of it is on this node: {kept}"),))


def _may_be_dropped(record: Record) -> bool:
    """No task ever wrote anything that only the node's journal could tell of."""
    workspace = record.workspace
    return not record.running and not record.force_released and (workspace is None or not workspace.ever_started)


def _is_anything_here(observed: Observed) -> bool:
    held = isinstance(observed.snapshots, Present) and bool(observed.snapshots.it)
    return held or any(isinstance(it, Present) for it in (observed.container, observed.task, observed.sandbox))


def _is_nothing_here(observed: Observed) -> bool:
    looked = isinstance(observed.snapshots, Present | Absent)
    return looked and all(isinstance(it, Absent) for it in (observed.container, observed.task, observed.sandbox))


def _what_the_ledger_keeps(record: Record, ledger: LedgerFacts) -> str | None:
    """What became of the data, in the ledger's words; None where it cannot vouch that none is missing."""
    if ledger.released:
        return "the ledger has it that this life is over"
    if record.put_away is not None:
        archived, known = record.put_away.archive, ledger.put_away
        agrees = known is not None and (known.sequence, known.snapshot_key) == (
            archived.sequence,
            archived.snapshot_key,
        )
        return f"its data is kept as archive {archived.sequence}" if agrees else None
    return "it never had data" if ledger.data_seen is None else None
