"""The phase that follows a failed attempt: what is shown while it is waited for, and what the history says it came to.

Asked by the rules (`first_rules`, `deletion`) and by the reconciler when it closes the operation that failed.
"""

from __future__ import annotations

from perdure.api.phases import Phase
from perdure.plan.operations import TRANSIENT_PHASE
from perdure.plan.world import Failure, Record


def phase_after(failure: Failure, otherwise: Phase, *, spec_is_read: bool = True) -> Phase:
    """Data that is at stake comes before a spec that is wrong: what an edit starts again could be the loss of it.
    `otherwise`: of what passes by itself. `spec_is_read`: no edit helps what is being deleted."""
    if failure.blocks_data:
        return Phase.BLOCKED
    if failure.user_error and spec_is_read:
        return Phase.FAILED
    return otherwise


def phase_told(failure: Failure, record: Record) -> Phase:
    """What the end of the failed operation says: where it began from, unless a person must do something."""
    if record.running:
        otherwise = Phase.RUNNING
    elif record.phase is not None:
        otherwise = record.phase
    else:
        otherwise = TRANSIENT_PHASE[record.operation.op] if record.operation is not None else Phase.PENDING
    return phase_after(failure, otherwise)
