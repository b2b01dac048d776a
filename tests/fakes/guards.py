"""Guards of a node that has looked at its ledger and found it to be the one of before; they judge what comes as ever."""

from __future__ import annotations

from tests.fakes.journal import FakeJournal

from perdure.reconcile.guards import Guards


class TrustingGuards(Guards):
    def __init__(self, journal: FakeJournal | None = None) -> None:
        super().__init__(journal or FakeJournal())
        self._ledger_seen = True
