"""What a freeze of the node holds up, what it does not, and where it shows: as docs/ledger.md says."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from tests.property.worlds import NOW
from tests.unit.plan.test_cleanup import ALIVE, world

from perdure.api.conditions import Reason
from perdure.api.names import FINALIZER
from perdure.api.runtime import DeletionPolicy, DesiredState, RuntimeStatus
from perdure.plan.planner import plan
from perdure.plan.steps import Begin, Plan, StopTask
from perdure.plan.world import Freeze, Record, Terminating, Wanted, World

FREEZES = [Freeze(Reason.MASS_ABSENCE, "look first"), Freeze(Reason.IDENTITY_CHANGED, "look first")]
LOOKING = pytest.mark.parametrize("freeze", FREEZES, ids=lambda freeze: freeze.reason.value)


def degraded(made: Plan) -> str | None:
    """The reason, if it is."""
    assert isinstance(made.status, RuntimeStatus)
    return next((it.reason for it in made.status.conditions if (it.type, it.status) == ("Degraded", "True")), None)


def live(wanted: DesiredState = DesiredState.RUNNING, policy: DeletionPolicy = DeletionPolicy.PRESERVE) -> World:
    """It runs."""
    seen = world(task=ALIVE, desired_state=wanted, deletion_policy=policy)
    return replace(seen, record=replace(seen.record, running=True, stopped_at=None, stopped_up=None))


@LOOKING
def test_a_healthy_runtime_is_as_ever_and_shows_nothing_of_it(freeze: Freeze) -> None:
    seen = live()
    assert plan(replace(seen, freeze=freeze), NOW) == plan(seen, NOW)
    assert degraded(plan(replace(seen, freeze=freeze), NOW)) is None


@LOOKING
def test_a_stop_by_desired_state_is_carried_out(freeze: Freeze) -> None:
    seen = live(DesiredState.STOPPED)
    made = plan(replace(seen, freeze=freeze), NOW)
    assert made == plan(seen, NOW)
    assert [type(step) for step in made.steps] == [Begin, StopTask]
    assert degraded(made) is None


@LOOKING
def test_a_start_on_data_that_is_there_is_carried_out(freeze: Freeze) -> None:
    seen = world(desired_state=DesiredState.RUNNING)
    made = plan(replace(seen, freeze=freeze), NOW)
    assert made == plan(seen, NOW)
    assert made.steps


@LOOKING
@pytest.mark.parametrize("policy", list(DeletionPolicy))
def test_a_deletion_waits_and_says_why(freeze: Freeze, policy: DeletionPolicy) -> None:
    seen = live(policy=policy)
    assert isinstance(seen.desired, Wanted)
    runtime = msgspec.structs.replace(
        seen.desired.runtime, deletion_timestamp="2026-01-01T00:00:00Z", finalizers=(FINALIZER,)
    )
    seen = replace(seen, desired=Terminating(runtime), record=replace(seen.record, deletion_seen=True))
    assert plan(seen, NOW).steps
    made = plan(replace(seen, freeze=freeze), NOW)
    assert made.steps == ()
    assert degraded(made) == freeze.reason


@LOOKING
def test_a_clean_up_waits_and_says_why(freeze: Freeze) -> None:
    made = plan(replace(world(stopped_ttl="0s"), freeze=freeze), NOW)
    assert made.steps == ()
    assert degraded(made) == freeze.reason


@pytest.mark.parametrize(("freeze", "waits"), list(zip(FREEZES, (False, True), strict=True)))
def test_a_first_start_that_may_have_data_to_bring_back_waits_for_the_right_ledger_alone(
    freeze: Freeze, waits: bool
) -> None:
    seen = world(record=Record(ref=world().ref), container=False, desired_state=DesiredState.RUNNING)
    made = plan(replace(seen, freeze=freeze), NOW)
    assert (degraded(made) == freeze.reason) is waits
    assert (made.waiting is not None and made.waiting.reason is freeze.reason) is waits
