"""What the end of a purge says: nothing of the name is left, or what was kept, and why."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from tests.property.worlds import NOW
from tests.unit.plan.test_cleanup import CLEANUP, only, world

from perdure.api.names import FINALIZER
from perdure.api.phases import Phase
from perdure.api.runtime import DeletionPolicy
from perdure.plan.steps import Finish
from perdure.plan.world import LedgerFacts, Op, Outcome, Terminating, Wanted, World

NOTHING = "nothing of this identity is left"


def purging(ledger: LedgerFacts) -> World:
    """Its object is being deleted, and its container, layer and archives are gone."""
    seen = world(snapshot=False, ledger=ledger, deletion_policy=DeletionPolicy.PURGE)
    assert isinstance(seen.desired, Wanted)
    runtime = msgspec.structs.replace(
        seen.desired.runtime, deletion_timestamp="2026-01-01T00:00:00Z", finalizers=(FINALIZER,)
    )
    record = replace(seen.record, deletion_seen=True, operation=replace(CLEANUP, op=Op.PURGE))
    return replace(seen, desired=Terminating(runtime), record=record)


@pytest.mark.parametrize(
    ("spared", "message"),
    [
        ((), NOTHING),
        ((9,), f"{NOTHING} but what is retained or perhaps of a later life: archives 9"),
        (tuple(range(1, 9)), f"{NOTHING} but what is retained or perhaps of a later life: archives 1, 2, 3, 4, 5 and 3 more"),
    ],
)  # fmt: skip
def test_the_end_of_a_purge_says_what_was_spared(spared: tuple[int, ...], message: str) -> None:
    made = only(purging(LedgerFacts(spared=spared)), NOW)
    assert made == Finish(Outcome.SUCCESS, Phase.PURGING, message, release=True)
