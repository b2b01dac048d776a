"""A node journal in memory, for the crash matrix. It passes `tests/contract/test_journal_contract.py`, as the real one.

What was committed is in a `JournalDisk`, which outlives the journal object as a file outlives a process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from perdure.api.conditions import Reason
from perdure.api.names import Uid
from perdure.plan.world import Record
from perdure.reconcile.ports.errors import PortError
from perdure.reconcile.ports.journal import LedgerRow, NodeMemory

Hook = Callable[[str, Literal["before", "after"]], None]
"""Called around every durable call with its name (`journal.commit`); what it raises is the kill."""


@dataclass(slots=True)
class JournalDisk:
    """What survives the process."""

    records: dict[Uid, Record] = field(default_factory=dict)
    unsent: list[LedgerRow] = field(default_factory=list)
    aside: list[LedgerRow] = field(default_factory=list)
    memory: NodeMemory = field(default_factory=NodeMemory)


class FakeJournal:
    """Commits at once and entirely. `broken`, when set, is why the disk takes nothing."""

    def __init__(self, disk: JournalDisk | None = None, on_call: Hook | None = None) -> None:
        self.disk = disk or JournalDisk()
        self.broken: str | None = None
        self._on_call = on_call

    def records(self) -> Mapping[Uid, Record]:
        return dict(self.disk.records)

    def record(self, uid: Uid) -> Record | None:
        return self.disk.records.get(uid)

    def memory(self) -> NodeMemory:
        return self.disk.memory

    def unsent(self) -> Sequence[LedgerRow]:
        return tuple(self.disk.unsent)

    async def commit(
        self,
        *,
        put: Record | None = None,
        forget: Uid | None = None,
        rows: Sequence[LedgerRow] = (),
        memory: NodeMemory | None = None,
    ) -> None:
        self._call("commit", "before")
        if put is not None:
            self.disk.records[put.ref.uid] = put
        if forget is not None:
            self.disk.records.pop(forget, None)
        self.disk.unsent.extend(rows)
        if memory is not None:
            self.disk.memory = memory
        self._call("commit", "after")

    async def sent(self, count: int) -> None:
        self._call("sent", "before")
        if not 0 <= count <= len(self.disk.unsent):
            raise ValueError(f"{count} rows cannot be confirmed: {len(self.disk.unsent)} are waiting")
        del self.disk.unsent[:count]
        self._call("sent", "after")

    def refused(self) -> Sequence[LedgerRow]:
        return tuple(self.disk.aside)

    async def set_aside(self) -> None:
        self._call("set_aside", "before")
        if not self.disk.unsent:
            raise ValueError("no row can have been refused: none is waiting")
        self.disk.aside.append(self.disk.unsent.pop(0))
        self._call("set_aside", "after")

    async def take_back(self) -> None:
        self._call("take_back", "before")
        self.disk.unsent[:0], self.disk.aside = self.disk.aside, []
        self._call("take_back", "after")

    def _call(self, name: str, when: Literal["before", "after"]) -> None:
        if self._on_call is not None:
            self._on_call(f"journal.{name}", when)
        if when == "before" and self.broken is not None:
            raise PortError(f"committing to the journal: {self.broken}", reason=Reason.JOURNAL_FAILED)
