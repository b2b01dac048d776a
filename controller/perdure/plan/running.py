"""Rules for Running: how a process ended, a container that fits the spec, a task that runs."""

from __future__ import annotations

from dataclasses import replace

from perdure.api.conditions import ConditionType, Reason, Truth
from perdure.api.phases import Phase
from perdure.plan import cleanup
from perdure.plan.certainty import Present, Unknown
from perdure.plan.health import HealthEvent, HealthKind
from perdure.plan.memory import kills_told
from perdure.plan.network import has_another_network
from perdure.plan.operations import TOWARDS_RUNNING, closing, opening
from perdure.plan.restart import counts_anew, due_at, judge
from perdure.plan.scene import Scene, sandbox_if_missing
from perdure.plan.spec_hash import reads_sources, same_process
from perdure.plan.steps import (
    CreateContainer,
    EnsureImage,
    Note,
    Plan,
    ReapTask,
    RemoveContainer,
    StartTask,
)
from perdure.plan.view import stamp
from perdure.plan.way_down import stop_and_reap
from perdure.plan.world import (
    Exit,
    Op,
    Source,
    TaskState,
    Workspace,
)

SANDBOX_RETRY_SECONDS = 5.0


def process_ended(scene: Scene) -> Plan | None:
    """Journal how it ended and what the policy says of it, before the engine forgets the exit code."""
    task, record = scene.task, scene.record
    ended = task is not None and task.state is TaskState.STOPPED
    lost = task is None and record.running
    if not ended and not lost:
        return None
    if _stopped_by_wish(scene):
        return stop_and_reap(scene, Op.RESTART, Source.KUBECTL)
    exit_ = _exit_of(scene)
    if task is not None and task.exit is not None and exit_ == record.last_exit and not record.running:
        # This end is in the journal already; only the engine was not told to forget it. It counts once.
        op = Op.STOP if record.halted is not None else Op.RESTART
        again = ReapTask(
            scene.world.ref.container_id,
            exit_,
            record.failures_in_row,
            record.next_start_at,
            record.halted,
            record.restarts,
        )
        return scene.under(op, Source.NODE_EVENT, again)
    verdict = judge(record, exit_, scene.runtime.spec.restart_policy, scene.mark)
    op = Op.STOP if verdict.halted is not None else Op.RESTART
    reap = ReapTask(
        scene.world.ref.container_id,
        exit_,
        verdict.failures_in_row,
        verdict.next_start_at,
        verdict.halted,
        verdict.restarts,
        _incidents(scene, exit_),
    )
    return scene.under(op, Source.NODE_EVENT, reap)


def _exit_of(scene: Scene) -> Exit:
    """How it ended, and whether it was we who ended it for a probe that failed: only the journal knows that."""
    task, record = scene.task, scene.record
    seen = task.exit if task is not None and task.exit is not None else Exit(None, scene.now)
    counted = record.last_exit
    if not record.running and counted is not None and replace(counted, unhealthy=False) == seen:
        return counted
    return replace(seen, unhealthy=bool(record.health.ended_for))


def _incidents(scene: Scene, exit_: Exit) -> tuple[HealthEvent, ...]:
    """What is told of an end that nobody asked for. One for a probe that failed was told when the probe did."""
    if exit_.unhealthy:
        return ()
    if scene.task is None:
        gone = "its main process is on record as running, and the engine knows neither it nor how it ended"
        return (HealthEvent(HealthKind.DISAPPEARED, gone),)
    ended = HealthEvent(HealthKind.EXITED, "killed for want of memory" if exit_.oom else "", code=exit_.code)
    return *kills_told(scene), ended


def _stopped_by_wish(scene: Scene) -> bool:
    """Whether the policy has no say: a person stopped it, or what ended is not what is wanted any more."""
    operation = scene.record.operation
    if operation is not None and operation.source is Source.KUBECTL and operation.op in (Op.STOP, Op.CLEANUP):
        return True
    if scene.record.stop_asked is not None and not scene.record.health.ended_for:
        return True
    if has_another_network(scene):
        return True
    return isinstance(scene.world.observed.container, Present) and not _runs_what_is_wanted(scene)


def _runs_what_is_wanted(scene: Scene) -> bool:
    container, workspace = scene.world.observed.container, scene.workspace
    return (
        isinstance(container, Present)
        and workspace is not None
        and container.it.snapshot_key == workspace.key
        and same_process(container.it.spec_hash, scene.mark)
    )


def policy_leaves_it_stopped(scene: Scene) -> Plan | None:
    halted = scene.record.halted
    if halted is None or scene.task is not None:
        return None
    if not same_process(halted.spec_hash, scene.mark):
        return scene.do(Note(replace(scene.record, halted=None), "what is to run was changed"))
    cleaning = cleanup.clean_up_if_due(scene) or cleanup.is_counted(scene)
    if cleaning is not None:
        return cleaning
    exit_ = scene.record.last_exit
    message = f"the main process ended with exit code {exit_.code}" if exit_ else ""
    scene.draft.set(ConditionType.READY, Truth.FALSE, cleanup.resting_reason(scene, halted.reason), message)
    scene.draft.expires_at = cleanup.expires_at(scene)
    phase = cleanup.resting_phase(scene)
    return scene.rest(closing(scene.record, {Op.STOP}, phase, message), phase, wake_at=cleanup.due_at(scene))


def container_fits(scene: Scene) -> Plan | None:
    """The container record is as the spec says; a change of what is run stops the old process first."""
    container, workspace = scene.world.observed.container, scene.workspace
    if workspace is None:
        return None
    # Alive, or created by a start that was cut off: the engine changes no container that has a task.
    held = scene.task is not None
    if isinstance(container, Present):
        if _runs_what_is_wanted(scene) and (held or container.it.spec_hash == scene.mark):
            if container.it.spec_hash != scene.mark:
                message = "the new limits count from the next start"
                scene.draft.set(ConditionType.RESOURCES_APPLIED, Truth.FALSE, Reason.PENDING_RESTART, message)
            else:
                scene.draft.set(ConditionType.RESOURCES_APPLIED, Truth.TRUE, Reason.APPLIED)
            return None
        if held:
            return stop_and_reap(scene, Op.RESTART, Source.KUBECTL)
        if container.it.snapshot_key != workspace.key:
            return scene.under(Op.START, Source.AUTO_RECONCILE, RemoveContainer(scene.world.ref.container_id))
    # Also under a live process whose record was lost: the same id makes it manageable again, and it is not touched.
    return _make_container(scene, workspace)


def _make_container(scene: Scene, workspace: Workspace) -> Plan:
    op, source = _way_up(scene)
    image = scene.image
    if image is None:
        ensure = EnsureImage(workspace.image, scene.runtime.spec.image_pull_policy)
        return scene.under(op, source, ensure)
    if image.chain_id != workspace.chain_id:
        return scene.block(
            Reason.IMAGE_CHANGED,
            f"the image named {workspace.image} now has other layers than those this runtime's data stands on "
            f"({workspace.image_digest}); import that version again under this name",
        )
    missing = sandbox_if_missing(scene)
    if missing:
        return scene.under(op, source, *missing)
    return scene.under(op, source, CreateContainer(workspace.key, image, scene.mark))


def _way_up(scene: Scene) -> tuple[Op, Source]:
    """What a start is called: after a stop by wish it is a start by wish, after anything else our own restart."""
    if scene.record.phase is Phase.RUNNING:
        return Op.RESTART, Source.AUTO_RECONCILE
    return Op.START, Source.KUBECTL


def task_runs(scene: Scene) -> Plan | None:
    task, record, workspace = scene.task, scene.record, scene.workspace
    if workspace is None or (task is not None and task.state is TaskState.RUNNING):
        return None
    start_at = due_at(record, scene.now, scene.world.uptime)
    if start_at is not None and counts_anew(record, scene.now, scene.world.uptime):
        return scene.do(Note(replace(record, next_start_at=start_at), "the clock was set back over a reboot"))
    if start_at is not None and scene.now < start_at:
        code = record.last_exit.code if record.last_exit else "unknown"
        message = (
            f"the main process ended {record.failures_in_row} times in a row, last with exit code {code}; "
            f"it is started again at {stamp(start_at)}"
        )
        return scene.wait(Reason.BACK_OFF, message, until=start_at, phase=Phase.CREATING)
    sandbox = scene.world.observed.sandbox
    if isinstance(sandbox, Unknown):
        return scene.wait(Reason.NETWORK_FAILED, sandbox.why, until=scene.now + SANDBOX_RETRY_SECONDS)
    op, source = _way_up(scene)
    missing = sandbox_if_missing(scene)
    if missing and task is None:
        # It joins its namespace by a path, and which path the new one has is the sandbox's to say: it is made after that.
        return scene.under(op, source, RemoveContainer(scene.world.ref.container_id))
    if missing:
        return scene.under(op, source, *missing)
    refresh = scene.image if task is None and reads_sources(scene.runtime.spec) else None
    if refresh is not None and refresh.chain_id != workspace.chain_id:
        refresh = None
    start = StartTask(scene.world.ref.container_id, workspace.key, refresh, scene.mark)
    return scene.under(op, source, start)


def healthy(scene: Scene) -> Plan:
    record, workspace = scene.record, scene.workspace
    if workspace is None:
        return scene.wait(Reason.IN_PROGRESS, "")
    if not record.running or not workspace.ever_started or workspace.archived is not None:
        touched = replace(workspace, ever_started=True, archived=None)
        started_at = record.started_at if record.running else scene.now
        seen = replace(
            record,
            running=True,
            workspace=touched,
            started_at=started_at,
            stopped_at=None,
            next_start_at=None,
            halted=None,
        )
        news = () if record.running else (HealthEvent(HealthKind.STARTED, "found running"),)
        return scene.do(Note(seen, "a task runs", news), phase=Phase.RUNNING)
    if record.operation is None and record.phase is not Phase.RUNNING:
        # A start that was taken for failed came about after all: the history says so, too.
        first = opening(record, *_way_up(scene))
        return scene.do(*((first,) if first is not None else ()), phase=Phase.RUNNING)
    return scene.rest(closing(record, TOWARDS_RUNNING, Phase.RUNNING), Phase.RUNNING, wake_at=scene.show_alive())
