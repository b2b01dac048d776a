"""The two phases of a stop: the signal, and SIGKILL when the grace period since then is over; in between nobody waits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.property.worlds import NOW
from tests.unit.plan.test_network import ALIVE, said, steps_of
from tests.unit.plan.test_network import world as any_world

from perdure.api.conditions import ConditionType
from perdure.api.names import OperationId
from perdure.api.phases import Phase
from perdure.api.runtime import DesiredState, Stop
from perdure.plan.certainty import Present
from perdure.plan.health import Health, ProbeKind
from perdure.plan.planner import plan
from perdure.plan.steps import Begin, Finish, KillTask, ReapTask, StopTask
from perdure.plan.uptime import Uptime
from perdure.plan.way_down import CLOCK_SLACK_SECONDS
from perdure.plan.world import Exit, Op, OpenOperation, Source, StopAsked, TaskFacts, TaskState, World

UP = 5000.0
STOPPING = OpenOperation(OperationId("stop"), Op.STOP, Source.KUBECTL, NOW - 20, Phase.RUNNING)


def world(
    waited: float | None,
    *,
    grace: int = 60,
    state: DesiredState = DesiredState.STOPPED,
    operation: OpenOperation | None = STOPPING,
    pid: int = ALIVE.pid,
    boot: str = "boot",
) -> World:
    """A main process that was sent the signal `waited` seconds ago."""
    found = any_world(desired_state=state, stop=Stop(grace_period_seconds=grace))
    asked = StopAsked(pid, Uptime(boot, UP - waited)) if waited is not None else None
    return replace(
        found, record=replace(found.record, stop_asked=asked, operation=operation), uptime=Uptime("boot", UP)
    )


def test_the_signal_comes_first() -> None:
    (stop,) = steps_of(world(None))
    assert stop == StopTask(world(None).ref.container_id, ALIVE.pid, "SIGTERM", 60.0)


def test_in_the_grace_period_nothing_is_done_and_its_end_is_waited_for() -> None:
    made = plan(world(20.0), NOW)
    assert made.steps == ()
    assert made.wake_at == NOW + 40 + CLOCK_SLACK_SECONDS
    assert made.status is not None
    assert made.status.phase == Phase.STOPPING
    assert said(made, ConditionType.READY) == (
        "False",
        "InProgress",
        "its main process is being stopped: SIGKILL follows the stop signal after 60 s",
    )
    assert plan(world(50.0), NOW + 30).status == made.status, "the same text all the while: nothing is written"


@pytest.mark.parametrize("waited", [60.0, 60.1, 86_400.0])
def test_after_it_the_process_is_killed(waited: float) -> None:
    assert steps_of(world(waited)) == [KillTask(world(waited).ref.container_id)]


@pytest.mark.parametrize(("grace", "killed"), [(0, True), (19, True), (20, True), (21, False), (86_400, False)])
def test_the_grace_period_is_what_the_spec_says_now(grace: int, killed: bool) -> None:
    assert [type(step) for step in steps_of(world(20.0, grace=grace))] == ([KillTask] if killed else [])


def test_a_wall_clock_that_is_set_changes_nothing() -> None:
    made = plan(world(20.0), NOW + 10_000)
    assert made.steps == ()
    assert made.wake_at == NOW + 10_000 + 40 + CLOCK_SLACK_SECONDS


@pytest.mark.parametrize("other", [{"pid": 43}, {"boot": "another"}])
def test_what_another_process_was_told_means_nothing_to_this_one(other: dict[str, object]) -> None:
    (stop,) = steps_of(world(1000.0, **other))  # type: ignore[arg-type]
    assert isinstance(stop, StopTask)


def test_one_that_is_wanted_again_is_stopped_all_the_same() -> None:
    again = world(20.0, state=DesiredState.RUNNING)
    made = plan(again, NOW)
    assert (made.steps, made.wake_at) == ((), NOW + 40 + CLOCK_SLACK_SECONDS)
    assert [type(step) for step in steps_of(world(60.0, state=DesiredState.RUNNING))] == [KillTask]


@pytest.mark.parametrize("operation", [STOPPING, None], ids=["open", "given up"])
def test_and_its_end_is_no_incident(operation: OpenOperation | None) -> None:
    alive = world(60.0, state=DesiredState.RUNNING, operation=operation)
    ended = TaskFacts(TaskState.STOPPED, ALIVE.pid, Exit(137, NOW))
    gone = replace(alive, observed=replace(alive.observed, task=Present(ended)))
    made = plan(gone, NOW)
    if operation is not None:
        assert [type(step) for step in made.steps] == [Finish], "the stop is over, a restart comes next"
        made = plan(replace(gone, record=replace(gone.record, operation=None)), NOW)
    begun, reap = made.steps
    assert isinstance(begun, Begin)
    assert isinstance(reap, ReapTask)
    assert (begun.op, begun.source) == (Op.RESTART, Source.KUBECTL)
    assert (reap.restarts, reap.failures_in_row, reap.events) == (0, 0, ())


def test_the_operation_of_a_stop_that_failed_is_begun_again_before_it_is_waited_for() -> None:
    (begun,) = plan(world(20.0, operation=None), NOW).steps
    assert isinstance(begun, Begin)
    assert begun.op is Op.STOP


def test_for_a_probe_it_is_the_probes_grace_and_the_probes_reason() -> None:
    found = world(5.0, state=DesiredState.RUNNING, operation=replace(STOPPING, op=Op.RESTART, source=Source.NODE_EVENT))
    health = Health(ended_for="liveness probe failed: x", failing=(ProbeKind.LIVENESS,))
    made = plan(replace(found, record=replace(found.record, health=health)), NOW)
    assert made.steps == ()
    assert said(made, ConditionType.READY) == ("False", "ProbeFailed", "liveness probe failed: x")
