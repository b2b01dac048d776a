"""What the journal says once it is replayed: one entry is one atomic change of it.

Pure: `file.py` makes entries durable, `frames.py` puts them into bytes, both apply them here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import msgspec

from perdure.api.names import Uid
from perdure.plan.world import Record
from perdure.reconcile.ports.journal import (
    HealthRow,
    LedgerRow,
    NodeMemory,
    OperationFailing,
    OperationFinished,
    OperationStarted,
)

_ROWS_PER_ENTRY = 100


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of the kinds of rows: JSON needs to say which."""

    started: OperationStarted | None = None
    finished: OperationFinished | None = None
    health: HealthRow | None = None
    failing: OperationFailing | None = None

    @staticmethod
    def of(row: LedgerRow) -> Row:
        """Lone surrogates of a message (file names that are no UTF-8) are replaced: JSON cannot hold them."""
        match row:
            case OperationStarted():
                return Row(started=row)
            case OperationFinished():
                return Row(finished=replace(row, message=_storable(row.message)))
            case HealthRow():
                return Row(health=replace(row, message=_storable(row.message)))
            case OperationFailing():
                return Row(failing=replace(row, message=_storable(row.message)))

    @property
    def it(self) -> LedgerRow:
        row = self.started or self.finished or self.health or self.failing
        if row is None:
            raise ValueError("a row of the journal is neither of an operation nor a health event")
        return row


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one `commit` (or one `sent`) changes. The field names are the format on disk: never rename one."""

    put: Record | None = None
    forget: Uid | None = None
    rows: tuple[Row, ...] = ()
    memory: NodeMemory | None = None
    sent: int = 0
    aside: tuple[Row, ...] = ()
    """Set aside, as the ledger refuses them; with `sent`, in the same entry, for those that were waiting."""
    back: bool = False
    """What was set aside waits again."""


class State:
    """The replayed journal. Changed by `apply` alone."""

    def __init__(self) -> None:
        self.records: dict[Uid, Record] = {}
        self.unsent: list[LedgerRow] = []
        self.aside: list[LedgerRow] = []
        self.memory = NodeMemory()

    @property
    def live(self) -> int:
        """How many things are remembered: what a compacted journal would hold."""
        return len(self.records) + len(self.unsent) + len(self.aside) + 1

    def apply(self, entry: Entry) -> None:
        """Raises `ValueError` for an entry that this journal cannot have had: more rows sent than there were."""
        if entry.sent > len(self.unsent):
            raise ValueError(f"{entry.sent} rows are said to be sent, but only {len(self.unsent)} were waiting")
        del self.unsent[: entry.sent]
        self.aside.extend(row.it for row in entry.aside)
        if entry.back:
            self.unsent[:0], self.aside = self.aside, []
        if entry.put is not None:
            self.records[entry.put.ref.uid] = entry.put
        if entry.forget is not None:
            self.records.pop(entry.forget, None)
        self.unsent.extend(row.it for row in entry.rows)
        if entry.memory is not None:
            self.memory = entry.memory

    def snapshot(self) -> Iterator[Entry]:
        """The fewest entries that make this state out of an empty one."""
        yield Entry(memory=self.memory)
        for record in self.records.values():
            yield Entry(put=record)
        for rows in _chunks(self.aside):
            yield Entry(aside=tuple(map(Row.of, rows)))
        for rows in _chunks(self.unsent):
            yield Entry(rows=tuple(map(Row.of, rows)))


def _chunks(rows: Sequence[LedgerRow]) -> Iterator[tuple[LedgerRow, ...]]:
    waiting = iter(rows)
    while chunk := tuple(islice(waiting, _ROWS_PER_ENTRY)):
        yield chunk
