"""Rules that come first: what must be certain before anything else is asked."""

from __future__ import annotations

from dataclasses import replace

from perdure.api.conditions import ConditionType, Reason, Truth
from perdure.api.phases import Phase
from perdure.api.runtime import DesiredState
from perdure.plan.certainty import Unknown
from perdure.plan.data_source import LIFE_IS_OVER
from perdure.plan.failures import phase_after
from perdure.plan.network import is_about_network
from perdure.plan.scene import Scene
from perdure.plan.steps import (
    Note,
    Plan,
    Waiting,
)
from perdure.plan.view import is_running, stamp
from perdure.plan.world import Op

ENGINE_RETRY_SECONDS = 5.0


def spec_is_invalid(scene: Scene) -> Plan | None:
    if scene.runtime.invalid is None:
        return None
    return scene.wait(Reason.INVALID_SPEC, scene.runtime.invalid, phase=Phase.FAILED)


def engine_is_away(scene: Scene) -> Plan | None:
    observed = scene.world.observed
    for thing in (observed.container, observed.task, observed.snapshots):
        if isinstance(thing, Unknown):
            scene.draft.set(ConditionType.READY, Truth.UNKNOWN, Reason.ENGINE_UNAVAILABLE, thing.why)
            status = scene.draft.build(scene.record.phase or Phase.PENDING)
            until = scene.now + ENGINE_RETRY_SECONDS
            return Plan(status=status, wake_at=until, waiting=Waiting(Reason.ENGINE_UNAVAILABLE, thing.why, until))
    return None


def life_is_over(scene: Scene) -> Plan | None:
    """The ledger ended this uid, yet the object is there and not Terminating: etcd was put back to an earlier day."""
    if not scene.record.released:
        return None
    return scene.block(Reason.IDENTITY_CHANGED, LIFE_IS_OVER)


def deletion_was_undone(scene: Scene) -> Plan | None:
    if not scene.record.deletion_seen and not scene.record.force_released:
        return None
    alive = replace(scene.record, deletion_seen=False, force_released=False)
    return scene.do(Note(alive, "the object that was seen Terminating is live again"))


def failed_lately(scene: Scene) -> Plan | None:
    failure = scene.world.failure
    if failure is None or scene.now >= failure.retry_at:
        return None
    waiting = Waiting(failure.reason, failure.message, failure.retry_at)
    if is_about_network(failure):
        again = f"attempt {failure.attempts}, tried again at {stamp(failure.retry_at)}"
        scene.draft.set(ConditionType.NETWORK_READY, Truth.FALSE, failure.reason, f"{failure.message} ({again})")
        if is_running(scene.world):
            scene.draft.set(ConditionType.READY, Truth.FALSE, failure.reason, failure.message)
            return Plan(status=scene.draft.build(Phase.RUNNING), wake_at=failure.retry_at, waiting=waiting)
    if is_running(scene.world):
        scene.draft.set(ConditionType.DEGRADED, Truth.TRUE, failure.reason, failure.message)
        ready_at = scene.show_alive()
        wake_at = failure.retry_at if ready_at is None else min(ready_at, failure.retry_at)
        return Plan(status=scene.draft.build(Phase.RUNNING), wake_at=wake_at, waiting=waiting)
    operation = scene.record.operation
    cleaning_up = operation is not None and operation.op is Op.CLEANUP
    if cleaning_up:
        scene.draft.set(ConditionType.PRESERVED, Truth.FALSE, failure.reason, failure.message)
    if failure.blocks_data:
        scene.draft.set(ConditionType.DATA_READY, Truth.FALSE, failure.reason, failure.message)
    phase = phase_after(failure, Phase.STOPPED if cleaning_up or _is_down(scene) else scene.transient)
    if failure.reason in _IMAGE_REASONS:
        scene.draft.set(ConditionType.IMAGE_READY, Truth.FALSE, failure.reason, failure.message)
    return scene.wait(failure.reason, failure.message, until=failure.retry_at, phase=phase)


def _is_down(scene: Scene) -> bool:
    """Nothing is to run, nothing runs, and nothing is under way."""
    to_run = scene.runtime.spec.desired_state is DesiredState.RUNNING
    return not to_run and scene.task is None and scene.record.operation is None


_IMAGE_REASONS = frozenset({Reason.IMAGE_NOT_FOUND, Reason.PULL_UNSUPPORTED, Reason.PLATFORM_MISMATCH})
