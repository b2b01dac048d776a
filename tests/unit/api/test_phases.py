"""The table of phases: complete, and without a way that would surprise a person."""

import pytest

from perdure.api.phases import EDGES, Phase, may_follow

DELETING = {Phase.PRESERVING, Phase.PURGING}


def test_every_phase_has_its_edges() -> None:
    assert EDGES.keys() == set(Phase)


@pytest.mark.parametrize("phase", Phase)
def test_a_phase_may_be_first_and_may_be_repeated(phase: Phase) -> None:
    assert may_follow(None, phase)
    assert may_follow(phase, phase)


@pytest.mark.parametrize("phase", set(Phase) - DELETING)
def test_a_deletion_can_begin_anywhere(phase: Phase) -> None:
    assert EDGES[phase] >= DELETING


@pytest.mark.parametrize("phase", sorted(DELETING))
def test_a_deletion_never_turns_back(phase: Phase) -> None:
    """It may be blocked, or given up by force; it never leads to anything that has or gets a process."""
    given_up = {Phase.BLOCKED, Phase.STOPPING, Phase.REMOVED}
    assert EDGES[phase] <= DELETING | given_up


@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.BLOCKED])
def test_a_person_can_lead_out_of_it(phase: Phase) -> None:
    assert Phase.RUNNING in EDGES[phase]
