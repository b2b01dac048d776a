"""What verdicts of probes lead to: what people see, what is told, and which process is ended for it."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from tests.property.worlds import NOW
from tests.unit.plan.test_network import world as any_world

from perdure.api.conditions import ConditionType
from perdure.api.phases import Phase
from perdure.api.probes import Probe, TcpSocketAction
from perdure.api.runtime import RestartPolicy, RuntimeSpec, parse_runtime
from perdure.plan.certainty import Absent, Certain, Present
from perdure.plan.health import (
    NO_HEALTH,
    NOTHING_PROBED,
    Health,
    HealthEvent,
    HealthKind,
    ProbeFacts,
    ProbeKind,
    Verdict,
)
from perdure.plan.planner import plan
from perdure.plan.probes import judged
from perdure.plan.steps import Begin, Note, Plan, ReapTask, StopTask
from perdure.plan.world import Exit, Halted, Op, Source, TaskFacts, TaskState, World

PROBE = Probe(tcp_socket=TcpSocketAction(port=7777))
PASSED, FAILED = Verdict(True), Verdict(False, "status 500")
BOTH = RuntimeSpec(image="i", readiness_probe=PROBE, liveness_probe=PROBE)
ALL = RuntimeSpec(image="i", startup_probe=PROBE, readiness_probe=PROBE, liveness_probe=PROBE)


def world(health: Health = NO_HEALTH, seen: ProbeFacts = NOTHING_PROBED, **spec: object) -> World:
    probes = {"readiness_probe": PROBE, "liveness_probe": PROBE} | spec
    found = any_world(**probes)  # type: ignore[arg-type]
    return replace(found, record=replace(found.record, health=health), observed=replace(found.observed, probes=seen))


def ready(made: Plan) -> tuple[str, str, str]:
    assert made.status is not None
    (found,) = [c for c in made.status.conditions if c.type == ConditionType.READY]
    return found.status, found.reason, found.message


def told(kind: HealthKind, probe: ProbeKind, message: str = "") -> HealthEvent:
    return HealthEvent(kind, message, probe)


# ---------------------------------------------------------------------------------------------- readiness


def test_until_its_probe_has_succeeded_once_it_is_not_ready() -> None:
    made = plan(world(), NOW)
    assert made.steps == ()
    assert ready(made) == ("False", "ProbePending", "its readiness probe has not succeeded yet")
    assert made.status is not None
    assert made.status.phase == Phase.RUNNING


def test_a_first_success_makes_it_ready_and_is_no_event() -> None:
    (note,) = plan(world(seen=ProbeFacts(readiness=PASSED)), NOW).steps
    assert isinstance(note, Note)
    assert note.events == ()
    assert ready(plan(world(note.record.health, ProbeFacts(readiness=PASSED)), NOW)) == ("True", "Running", "")


def test_what_the_journal_has_holds_until_something_else_is_known() -> None:
    """After a restart of the agent, and while the engine did not answer: not having asked means nothing."""
    failing = Health(ready=False, message="readiness probe failed: status 500", failing=(ProbeKind.READINESS,))
    assert ready(plan(world(Health(ready=True)), NOW)) == ("True", "Running", "")
    assert ready(plan(world(failing), NOW)) == ("False", "ProbeFailed", "readiness probe failed: status 500")


def test_failure_and_recovery_are_told_once_each() -> None:
    health, events = judged(Health(ready=True), BOTH, ProbeFacts(readiness=FAILED))
    assert events == (told(HealthKind.PROBE_FAILED, ProbeKind.READINESS, "status 500"),)
    assert judged(health, BOTH, ProbeFacts(readiness=FAILED)) == (health, ())
    assert ready(plan(world(health, ProbeFacts(readiness=FAILED)), NOW))[:2] == ("False", "ProbeFailed")
    health, events = judged(health, BOTH, ProbeFacts(readiness=PASSED))
    assert events == (told(HealthKind.PROBE_RECOVERED, ProbeKind.READINESS),)
    assert health == Health(ready=True)


def test_what_fails_again_after_a_restart_without_having_recovered_is_not_told_again() -> None:
    failing, _ = judged(Health(), BOTH, ProbeFacts(readiness=FAILED))
    again, events = judged(failing.of_next_task(), BOTH, ProbeFacts(readiness=FAILED))
    assert (again, events) == (failing, ())


def test_of_a_probe_that_was_taken_out_nothing_is_left() -> None:
    failing, _ = judged(Health(), BOTH, ProbeFacts(readiness=FAILED))
    assert judged(failing, RuntimeSpec(image="i"), NOTHING_PROBED) == (Health(), ())


def test_readiness_restarts_nothing() -> None:
    (note,) = plan(world(seen=ProbeFacts(readiness=FAILED)), NOW).steps
    assert isinstance(note, Note)
    assert plan(world(note.record.health, ProbeFacts(readiness=FAILED)), NOW).steps == ()


# ---------------------------------------------------------------------------------------------- liveness, startup


def test_a_failed_liveness_probe_is_journalled_then_ends_the_process_as_a_restart() -> None:
    seen = ProbeFacts(readiness=PASSED, liveness=FAILED)
    (note,) = plan(world(Health(ready=True), seen), NOW).steps
    assert isinstance(note, Note)
    assert note.events == (told(HealthKind.PROBE_FAILED, ProbeKind.LIVENESS, "status 500"),)
    begun, stop = plan(world(note.record.health, seen), NOW).steps
    assert isinstance(begun, Begin)
    assert (begun.op, begun.source) == (Op.RESTART, Source.NODE_EVENT)
    assert isinstance(stop, StopTask)
    made = plan(world(note.record.health, seen), NOW)
    assert ready(made) == ("False", "ProbeFailed", "liveness probe failed: status 500")


@pytest.mark.parametrize(("own", "grace"), [(None, 10.0), (0, 0.0), (3, 3.0)])
def test_the_probe_may_have_its_own_grace(own: int | None, grace: float) -> None:
    probe = msgspec.structs.replace(PROBE, termination_grace_period_seconds=own)
    health = Health(ended_for="liveness probe failed: x", failing=(ProbeKind.LIVENESS,))
    *_, stop = plan(world(health, liveness_probe=probe, startup_probe=None), NOW).steps
    assert isinstance(stop, StopTask)
    assert stop.grace_seconds == grace


@pytest.mark.parametrize("policy", list(RestartPolicy))
def test_its_end_counts_as_a_failure_whatever_its_code_and_is_no_second_incident(policy: RestartPolicy) -> None:
    health = Health(ended_for="liveness probe failed: x", failing=(ProbeKind.LIVENESS,))
    found = world(health, restart_policy=policy)
    ended = TaskFacts(TaskState.STOPPED, 42, Exit(0, NOW - 1))
    begun, reap = plan(replace(found, observed=replace(found.observed, task=Present(ended))), NOW).steps
    assert isinstance(begun, Begin)
    assert isinstance(reap, ReapTask)
    assert reap.exit == Exit(0, NOW - 1, unhealthy=True)
    assert reap.events == ()
    assert isinstance(reap.halted, Halted) == (policy is RestartPolicy.NEVER)


def test_the_next_task_that_passes_has_recovered() -> None:
    health = Health(ended_for="x", failing=(ProbeKind.LIVENESS,)).of_next_task()
    assert judged(health, BOTH, ProbeFacts(liveness=PASSED)) == (
        Health(),
        (told(HealthKind.PROBE_RECOVERED, ProbeKind.LIVENESS),),
    )


def test_until_it_has_come_up_nothing_else_counts() -> None:
    seen = ProbeFacts(readiness=PASSED, liveness=FAILED)
    assert judged(Health(), ALL, seen) == (Health(), ())
    made = plan(world(seen=seen, startup_probe=PROBE), NOW)
    assert ready(made) == ("False", "ProbePending", "its startup probe has not succeeded yet")
    up, events = judged(Health(), ALL, ProbeFacts(startup=PASSED))
    assert (up, events) == (Health(started=True), ())
    assert judged(up, ALL, seen)[0].ended_for == "liveness probe failed: status 500"


def test_what_does_not_come_up_is_ended() -> None:
    health, events = judged(Health(), ALL, ProbeFacts(startup=FAILED))
    assert health.ended_for == "startup probe failed: status 500"
    assert events == (told(HealthKind.PROBE_FAILED, ProbeKind.STARTUP, "status 500"),)


def test_a_startup_probe_that_is_added_to_what_is_ready_asks_no_more() -> None:
    assert ready(plan(world(Health(ready=True), startup_probe=PROBE), NOW)) == ("True", "Running", "")


# ---------------------------------------------------------------------------------------------- ends, and specs


def ended_by_itself(exit_: Exit | None) -> ReapTask:
    found = any_world()
    ooms = int(exit_ is not None and exit_.oom)
    task: Certain[TaskFacts] = Absent() if exit_ is None else Present(TaskFacts(TaskState.STOPPED, 42, exit_, ooms))
    *_, reap = plan(replace(found, observed=replace(found.observed, task=task)), NOW).steps
    assert isinstance(reap, ReapTask)
    return reap


def test_an_end_that_nobody_asked_for_is_told_as_what_it_was() -> None:
    assert [event.kind for event in ended_by_itself(Exit(3, NOW)).events] == [HealthKind.EXITED]
    assert [event.kind for event in ended_by_itself(Exit(0, NOW)).events] == [HealthKind.EXITED]
    oom = ended_by_itself(Exit(137, NOW, oom=True)).events
    assert [(event.kind, event.code) for event in oom] == [(HealthKind.OOM, None), (HealthKind.EXITED, 137)]
    assert [event.kind for event in ended_by_itself(None).events] == [HealthKind.DISAPPEARED]


def test_a_child_that_was_killed_for_memory_is_told_at_most_once_a_minute_with_how_many_it_were() -> None:
    def seen(ooms: int, health: Health = NO_HEALTH) -> World:
        found = any_world()
        alive = Present(TaskFacts(TaskState.RUNNING, 42, ooms=ooms))
        return replace(found, record=replace(found.record, health=health), observed=replace(found.observed, task=alive))

    (note,) = plan(seen(1), NOW).steps
    assert isinstance(note, Note)
    assert [(event.kind, event.message) for event in note.events] == [
        (HealthKind.OOM, "the kernel killed a process of it at its memory limit")
    ]
    health = note.record.health
    assert plan(seen(1, health), NOW + 3600).steps == (), "once"
    assert plan(seen(0, health), NOW + 3600).steps == (), "an agent that was started again does not know of it"
    assert plan(seen(500, health), NOW + 59).steps == ()
    (again,) = plan(seen(500, health), NOW + 60).steps
    assert isinstance(again, Note)
    assert again.events[0].message == "the kernel killed 499 processes of it at its memory limit"


@pytest.mark.parametrize("wish", [{"desired_state": "Stopped"}, {"args": ("other",)}])
def test_an_end_that_was_asked_for_is_no_incident(wish: dict[str, object]) -> None:
    found = any_world()
    changed = any_world(task=TaskFacts(TaskState.STOPPED, 42, Exit(143, NOW)), **wish)  # type: ignore[arg-type]
    of_before = replace(changed, observed=replace(changed.observed, container=found.observed.container))
    *_, reap = plan(of_before, NOW).steps
    assert isinstance(reap, ReapTask)
    assert reap.events == ()


def test_a_port_by_a_name_that_the_runtime_does_not_have_is_refused() -> None:
    raw = {
        "kind": "BotRuntime",
        "metadata": {"namespace": "n", "name": "a", "uid": "u"},
        "spec": {
            "image": "i",
            "ports": [{"name": "web", "containerPort": 80}],
            "readinessProbe": {"httpGet": {"port": "web"}},
            "livenessProbe": {"tcpSocket": {"port": "wbe"}},
        },
    }
    invalid = parse_runtime(raw).invalid
    assert invalid is not None
    assert "livenessProbe: no port is named 'wbe' in spec.ports (web)" in invalid
