"""Nothing is done about a life that the journal does not know before the ledger has it that it is bound here."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.property.worlds import KEYS, NODE, NOW, REF, Draw

from perdure.api.names import NamespaceUid, NodeId
from perdure.plan.certainty import Absent, Certain, Present, Unknown
from perdure.plan.planner import plan
from perdure.plan.world import Bound, LedgerFacts, Record, Terminating, Wanted, World

UNPROVEN = (
    None,
    Bound(NodeId("another-node"), REF.namespace_uid),
    Bound(NODE, NamespaceUid("the-real-namespace")),
)
HERE = Bound(NODE, REF.namespace_uid)


def first_look(seed: int, ledger: Certain[LedgerFacts] | None = None, bound: Bound | None = None) -> World:
    """An object whose labels say that it is bound here, and a journal that does not know it."""
    draw = Draw(seed)
    terminating = draw.chance(0.5)
    runtime = draw.runtime(terminating=terminating)
    observed = draw.observed()
    answered = Present(replace(draw.ledger(), bound=bound)) if ledger is None else ledger
    return World(
        ref=REF,
        desired=Terminating(runtime) if terminating else Wanted(runtime),
        observed=replace(observed, ledger=answered),
        record=Record(ref=REF),
        recorded=False,
    )


@given(st.integers(), st.sampled_from(UNPROVEN))
def test_what_the_ledger_has_otherwise_is_left_alone_and_told(seed: int, bound: Bound | None) -> None:
    world = first_look(seed, bound=bound)
    made = plan(world, NOW)
    assert not made.steps
    assert made.status is not None
    told = {condition.type: condition.reason for condition in made.status.conditions}
    assert (told["Scheduled"], told["Ready"]) == ("NotBound", "NotBound")
    assert made.wake_at is not None


@given(st.integers(), st.sampled_from((Absent(), Unknown("it is away"))))
def test_without_the_ledger_nothing_is_begun(seed: int, ledger: Certain[LedgerFacts]) -> None:
    made = plan(first_look(seed, ledger), NOW)
    assert not made.steps
    assert made.waiting is not None
    assert made.waiting.reason.value == "LedgerUnavailable"


@given(st.integers())
def test_a_proven_binding_is_planned_as_one_that_was_recorded(seed: int) -> None:
    world = first_look(seed, bound=HERE)
    assert plan(world, NOW) == plan(replace(world, recorded=True), NOW)


@pytest.mark.parametrize("bound", UNPROVEN)
def test_evidence_of_data_stays_in_the_status(bound: Bound | None) -> None:
    world = first_look(0, bound=bound)
    assert isinstance(world.desired, Wanted | Terminating)
    status = msgspec.structs.replace(world.desired.runtime.status, snapshot_key=KEYS[0], last_archive="br-hermes-7")
    runtime = msgspec.structs.replace(world.desired.runtime, status=status)
    made = plan(replace(world, desired=Wanted(runtime)), NOW)
    assert made.status is not None
    assert (made.status.snapshot_key, made.status.last_archive) == (KEYS[0], "br-hermes-7")
