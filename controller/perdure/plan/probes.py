"""Rules about probes: what their results come to, what is told of it, and when a process is ended for it.

Whom to ask, and how many results in a row make a verdict, is the prober's; here only verdicts arrive. A verdict is
journalled before anything follows from it, and holds until another one comes: not having asked since the agent's start
means nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from perdure.api.conditions import ConditionType, Reason, Truth
from perdure.api.phases import Phase
from perdure.api.probes import Probe
from perdure.api.runtime import RestartPolicy, RuntimeSpec
from perdure.plan.health import Health, HealthEvent, HealthKind, ProbeFacts, ProbeKind, Verdict, has_come_up
from perdure.plan.scene import Scene
from perdure.plan.steps import Note, Plan
from perdure.plan.way_down import stop_and_reap
from perdure.plan.world import Op, Source, TaskState

_Told = tuple[Health, tuple[HealthEvent, ...]]


def probe_of(spec: RuntimeSpec, kind: ProbeKind) -> Probe | None:
    match kind:
        case ProbeKind.STARTUP:
            return spec.startup_probe
        case ProbeKind.READINESS:
            return spec.readiness_probe
        case ProbeKind.LIVENESS:
            return spec.liveness_probe
        case never:
            assert_never(never)


def results_count(scene: Scene) -> Plan | None:
    """New verdicts are journalled and told; for a startup or liveness probe that failed the process is ended."""
    task, record = scene.task, scene.record
    if task is None or task.state is not TaskState.RUNNING or not record.running:
        return None
    health, events = judged(record.health, scene.runtime.spec, scene.world.observed.probes)
    if health != record.health:
        noted = Note(replace(record, health=health), "what the probes have come to", events)
        return scene.do(noted, phase=Phase.RUNNING)
    return end_unwell(scene) if health.ended_for else None


def end_unwell(scene: Scene) -> Plan | None:
    """End the process for the probe that failed, as the journal has it."""
    health = scene.record.health
    scene.draft.set(ConditionType.READY, Truth.FALSE, Reason.PROBE_FAILED, health.ended_for)
    never_again = scene.runtime.spec.restart_policy is RestartPolicy.NEVER
    return stop_and_reap(scene, Op.STOP if never_again else Op.RESTART, Source.NODE_EVENT, _grace(scene))


def judged(health: Health, spec: RuntimeSpec, seen: ProbeFacts) -> _Told:
    """What the verdicts make of what is on record. A process that is being ended is judged no more."""
    if health.ended_for:
        return health, ()
    health = _without_removed(health, spec)
    events: tuple[HealthEvent, ...] = ()
    if not has_come_up(spec, health):
        return _startup(health, seen.startup)
    if spec.readiness_probe is not None:
        health, events = _readiness(health, seen.readiness)
    if spec.liveness_probe is not None:
        health, more = _liveness(health, seen.liveness)
        events += more
    return health, events


def _without_removed(health: Health, spec: RuntimeSpec) -> Health:
    """Of a probe that is not asked any more nothing is left."""
    asked = tuple(kind for kind in health.failing if probe_of(spec, kind) is not None)
    if spec.readiness_probe is None:
        health = replace(health, ready=None, message="")
    return replace(health, failing=asked)


def _startup(health: Health, verdict: Verdict | None) -> _Told:
    if verdict is None:
        return health, ()
    if not verdict.passed:
        return _to_be_ended(health, ProbeKind.STARTUP, verdict)
    return _recovered(replace(health, started=True), ProbeKind.STARTUP)


def _readiness(health: Health, verdict: Verdict | None) -> _Told:
    if verdict is None or verdict.passed is health.ready:
        return health, ()
    if verdict.passed:
        return _recovered(replace(health, ready=True, message=""), ProbeKind.READINESS)
    unready = replace(health, ready=False, message=f"readiness probe failed: {verdict.message}")
    if ProbeKind.READINESS in health.failing:
        return unready, ()
    failed = HealthEvent(HealthKind.PROBE_FAILED, verdict.message, ProbeKind.READINESS)
    return unready.with_failing(ProbeKind.READINESS), (failed,)


def _liveness(health: Health, verdict: Verdict | None) -> _Told:
    if verdict is None:
        return health, ()
    if not verdict.passed:
        return _to_be_ended(health, ProbeKind.LIVENESS, verdict)
    return _recovered(health, ProbeKind.LIVENESS)


def _to_be_ended(health: Health, probe: ProbeKind, verdict: Verdict) -> _Told:
    why = f"{probe.value} probe failed: {verdict.message}"
    ended = replace(health, ready=False, message=why, ended_for=why).with_failing(probe)
    return ended, (HealthEvent(HealthKind.PROBE_FAILED, verdict.message, probe),)


def _recovered(health: Health, probe: ProbeKind) -> _Told:
    if probe not in health.failing:
        return health, ()
    return health.without_failing(probe), (HealthEvent(HealthKind.PROBE_RECOVERED, "", probe),)


def _grace(scene: Scene) -> float | None:
    """Of the probe that failed, if it has its own."""
    kind = ProbeKind.LIVENESS if has_come_up(scene.runtime.spec, scene.record.health) else ProbeKind.STARTUP
    probe = probe_of(scene.runtime.spec, kind)
    return None if probe is None else probe.termination_grace_period_seconds
