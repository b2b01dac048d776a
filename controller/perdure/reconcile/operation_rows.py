"""The row that ends an operation, with what the record knows of its runtime then. Called by whoever closes one."""

from __future__ import annotations

from dataclasses import dataclass

from perdure.api.names import OperationId
from perdure.api.phases import Phase
from perdure.plan.world import Outcome, Record
from perdure.reconcile.ports.journal import OperationFinished


@dataclass(frozen=True, slots=True)
class End:
    """How an operation ended. `at`: seconds since the epoch; `code`: a `Code`, or the `Reason` of a failure."""

    at: float
    outcome: Outcome
    after: Phase
    code: str
    message: str


def finished(record: Record, id_: OperationId, end: End, image: str | None = None) -> OperationFinished:
    """`image`: what is told of a runtime that has no data yet; by default nothing."""
    workspace = record.workspace
    return OperationFinished(
        id=id_,
        ref=record.ref,
        at=end.at,
        outcome=end.outcome,
        after=end.after,
        error_code=end.code,
        message=end.message,
        snapshot_key=workspace.key if workspace is not None and workspace.prepared else None,
        image=workspace.image if workspace is not None else image or "",
        numbered_from=record.numbered_from,
        n=record.operations,
    )
