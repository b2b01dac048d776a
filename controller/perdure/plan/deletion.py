"""The plan for an object that is being deleted, and for one that is gone: archive first, verify, then remove.

While an object is Terminating only `deletionPolicy` and force-release are read. What cannot be proven waits: a deletion
that hangs with a reason is a nuisance, data that is gone is a loss.
"""

from __future__ import annotations

from dataclasses import replace

from perdure.api.conditions import ConditionType, Reason, Truth
from perdure.api.names import ANNOTATION_FORCE_RELEASE, Uid
from perdure.api.phases import Phase
from perdure.api.runtime import DeletionPolicy, Runtime, RuntimeSpec, RuntimeStatus
from perdure.plan import data, first_rules, proof
from perdure.plan.certainty import Certain, Present
from perdure.plan.data_source import archives_to_choose_from
from perdure.plan.drift import plan_absent
from perdure.plan.failures import phase_after
from perdure.plan.operations import TRANSIENT_PHASE, closing, opening
from perdure.plan.scene import Rule, Scene
from perdure.plan.steps import (
    AdoptSnapshot,
    ArchiveWorkspace,
    Finish,
    Forget,
    Ground,
    Note,
    Plan,
    PurgeArchives,
    RemoveWorkspace,
)
from perdure.plan.view import StatusDraft, archive_name
from perdure.plan.way_down import stop_and_reap, take_down
from perdure.plan.world import ArchiveFacts, Gone, LedgerFacts, Op, Outcome, Record, Source, Workspace, World

LEDGER_RETRY_SECONDS = 5.0
MAX_TOLD = 5
"""Archives that the end of a purge names."""
_GONE = "gone"


def plan_deletion(world: World, runtime: Runtime, now: float) -> Plan:
    """The plan for a Terminating object."""
    return _first_answer(_RULES, Scene(world, runtime, now, StatusDraft(world, runtime)))


def plan_gone(world: World, now: float) -> Plan:
    """The plan for a life whose object is proven gone. Only a deletion that was seen and journalled is acted on, or a release
    by force that the ledger tells of; without either there may be a record to tidy up (`drift`)."""
    record = world.record
    if not record.deletion_seen and not _given_up_while_away(world):
        return plan_absent(world, now)
    ghost = _ghost(record)
    scene = Scene(world, ghost, now, StatusDraft(world, ghost))
    return replace(_first_answer(_RULES_WHEN_GONE, scene), status=None)


def _first_answer(rules: tuple[Rule, ...], scene: Scene) -> Plan:
    for rule in rules:
        plan = rule(scene)
        if plan is not None:
            return plan
    return Plan()


def _ghost(record: Record) -> Runtime:
    """A stand-in for an object that is gone: its name, and defaults for what only the object knew."""
    ref = record.ref
    return Runtime(
        kind=ref.kind,
        namespace=ref.namespace,
        name=ref.name,
        uid=Uid(ref.uid),
        generation=0,
        resource_version="",
        labels={},
        annotations={},
        finalizers=(),
        deletion_timestamp=_GONE,
        creation_timestamp="",
        spec=RuntimeSpec(image=""),
        status=RuntimeStatus(),
    )


# ---------------------------------------------------------------------------------------------- what comes first


def _deletion_is_journalled(scene: Scene) -> Plan | None:
    """From here on the object's absence means that it was deleted."""
    if scene.record.deletion_seen:
        return None
    return scene.do(Note(replace(scene.record, deletion_seen=True), "the object is Terminating"))


def _force_release(scene: Scene) -> Plan | None:
    """A person gave the object up: its container goes, its data stays pinned, the controller lets the object go."""
    record = scene.record
    given_up = scene.runtime.force_release is not None or given_up_in_the_ledger(scene.world.observed.ledger)
    if given_up and not record.force_released:
        return scene.do(Note(replace(record, force_released=True), "a person released the object by force"))
    if not record.force_released:
        return None
    stopping = stop_and_reap(scene, Op.STOP, Source.KUBECTL)
    if stopping is not None:
        return stopping
    removing = take_down(scene, Op.STOP, Source.KUBECTL)
    if removing is not None:
        return removing
    if record.operation is None and record.phase is not Phase.REMOVED:
        return scene.under(Op.STOP, Source.KUBECTL)
    done = closing(record, {Op.STOP}, Phase.REMOVED, "released by force; the data stays pinned as an orphan")
    if done is None and isinstance(scene.world.desired, Gone) and not scene.snapshots:
        return Plan(steps=(Forget(),))  # nothing is pinned that the record could help to find
    return Plan(steps=(done,) if done else ())


def _engine_is_away(scene: Scene) -> Plan | None:
    waiting = first_rules.engine_is_away(scene)
    return replace(waiting, status=scene.draft.build(_phase(scene))) if waiting is not None else None


def _given_up_while_away(world: World) -> bool:
    """A person gave the object up, and it went, all without this node: what it runs may run elsewhere by now."""
    if world.record.force_released:
        return True
    return world.freeze is None and given_up_in_the_ledger(world.observed.ledger)


def given_up_in_the_ledger(ledger: Certain[LedgerFacts]) -> bool:
    """The object went before its annotation was seen here; the controller wrote it down first."""
    return isinstance(ledger, Present) and ledger.it.force_released


def _released(scene: Scene) -> Plan | None:
    """The ledger has it that this life is over: the controller takes the finalizer off."""
    if not scene.record.released:
        return None
    archived = _kept_as(scene.record)
    if archived is not None:
        scene.draft.set(ConditionType.PRESERVED, Truth.TRUE, Reason.ARCHIVED, archive_name(archived))
    else:
        scene.draft.set(ConditionType.PRESERVED, Truth.TRUE, Reason.NOTHING_TO_PRESERVE)
    scene.draft.set(ConditionType.READY, Truth.FALSE, Reason.DELETING)
    scene.draft.set(ConditionType.DATA_READY, Truth.FALSE, Reason.DELETING)
    return Plan(status=scene.draft.build(scene.record.phase or Phase.PRESERVING))


def _kept_as(record: Record) -> ArchiveFacts | None:
    """The archive that this life's data is in, whether its deletion or a clean-up made it."""
    if record.workspace is not None and record.workspace.archived is not None:
        return record.workspace.archived
    return record.put_away.archive if record.put_away is not None else None


def _released_and_gone(scene: Scene) -> Plan | None:
    return Plan(steps=(Forget(),)) if scene.record.released else None


def _frozen(scene: Scene) -> Plan | None:
    freeze = scene.world.freeze
    if freeze is None:
        return None
    scene.draft.set(ConditionType.DEGRADED, Truth.TRUE, freeze.reason, freeze.message)
    return scene.wait(freeze.reason, freeze.message, phase=_phase(scene))


def _failed_lately(scene: Scene) -> Plan | None:
    failure = scene.world.failure
    if failure is None or scene.now >= failure.retry_at:
        return None
    scene.draft.set(ConditionType.PRESERVED, Truth.FALSE, failure.reason, failure.message)
    phase = phase_after(failure, _phase(scene), spec_is_read=False)
    return scene.wait(failure.reason, failure.message, until=failure.retry_at, phase=phase)


def _op(scene: Scene) -> Op:
    """Purge once its intent is committed, whatever the policy says later; until then what the policy says now."""
    operation = scene.record.operation
    if operation is not None and operation.op is Op.PURGE and operation.committed:
        return Op.PURGE
    if scene.runtime.deletion_timestamp == _GONE:
        return Op.PRESERVE if operation is not None and operation.op is Op.PRESERVE else Op.DISPOSE
    return Op.PURGE if scene.runtime.spec.deletion_policy is DeletionPolicy.PURGE else Op.PRESERVE


def _phase(scene: Scene) -> Phase:
    return TRANSIENT_PHASE[_op(scene)]


def _source(scene: Scene) -> Source:
    return Source.AUTO_RECONCILE if _op(scene) is Op.DISPOSE else Source.KUBECTL


# ---------------------------------------------------------------------------------------------- Purge


def _purge(scene: Scene) -> Plan | None:
    if _op(scene) is not Op.PURGE:
        return None
    first = opening(scene.record, Op.PURGE, Source.KUBECTL)
    if first is not None:
        return scene.do(first, phase=Phase.PURGING)
    stopping = stop_and_reap(scene, Op.PURGE, Source.KUBECTL)
    if stopping is not None:
        return stopping
    removing = take_down(scene, _op(scene), _source(scene))
    if removing is not None:
        return removing
    if scene.snapshots:
        return scene.do(*(RemoveWorkspace(snapshot.key, Ground.PURGE) for snapshot in scene.snapshots))
    match scene.world.observed.ledger:
        case Present(it=LedgerFacts(purgeable=(), spared=spared)):
            return scene.do(Finish(Outcome.SUCCESS, Phase.PURGING, _what_is_left(spared), release=True))
        case Present():
            return scene.do(PurgeArchives())
        case _:
            return _wait_for_ledger(scene)


def _what_is_left(spared: tuple[int, ...]) -> str:
    nothing = "nothing of this identity is left"
    if not spared:
        return nothing
    more = f" and {len(spared) - MAX_TOLD} more" if len(spared) > MAX_TOLD else ""
    told = ", ".join(map(str, spared[:MAX_TOLD]))
    return f"{nothing} but what is retained or perhaps of a later life: archives {told}{more}"


# ---------------------------------------------------------------------------------------------- Preserve


def _orphan_becomes_workspace(scene: Scene) -> Plan | None:
    """A snapshot without a record is preserved like any other. One whose restore was not finished never ran."""
    if scene.workspace is not None or not scene.snapshots:
        return None
    newest = max(scene.snapshots, key=lambda snapshot: snapshot.n)
    if newest.gate is None:
        return scene.under(
            _op(scene), _source(scene), AdoptSnapshot(newest, None, data.may_be_announced(scene, newest))
        )
    half_restored = Workspace(newest.key, newest.n, newest.image, newest.image_digest, newest.chain_id, prepared=True)
    known = replace(scene.record, workspace=half_restored, newest_n=max(scene.record.newest_n, newest.n))
    return scene.do(
        Note(known, "a restore that was not finished was found; its gate let no task in"), phase=_phase(scene)
    )


def _task_was_there(scene: Scene) -> Plan | None:
    """Whoever started it: from now on the layer holds data, and an archive of it is out of date."""
    return data.task_was_there(scene, _phase(scene))


def _nothing_to_preserve(scene: Scene) -> Plan | None:
    workspace = scene.workspace
    if scene.snapshots or (workspace is not None and workspace.prepared):
        return None
    put_away = data.known_put_away(scene)
    if put_away is not None:
        return _let_go(scene, f"kept as archive {archive_name(put_away)} since it was cleaned up")
    match scene.world.observed.ledger:
        case Present(it=LedgerFacts(data_seen=None)) if scene.runtime.status.snapshot_key is None:
            return _let_go(scene, "there was no data")
        case Present(it=LedgerFacts(released=True)):
            return _let_go(scene, "the ledger has it that this life is over")
        case Present(it=LedgerFacts(data_seen=key)):
            return _missing(scene, key or scene.runtime.status.snapshot_key or "")
        case _:
            return _wait_for_ledger(scene)


def _data_is_missing(scene: Scene) -> Plan | None:
    workspace = scene.workspace
    if scene.snapshots or workspace is None or scene.archived is not None:
        return None
    if not workspace.ever_started:
        return None
    return _missing(scene, workspace.key)


def _archived_first(scene: Scene) -> Plan | None:
    workspace = scene.workspace
    if workspace is None or not workspace.ever_started or scene.archived is not None:
        return None
    op = _op(scene)
    first = opening(scene.record, op, _source(scene))
    if first is not None:
        return scene.do(first, phase=_phase(scene))
    stopping = stop_and_reap(scene, op, _source(scene))
    if stopping is not None:
        return stopping
    return scene.do(ArchiveWorkspace(workspace.key))


def _then_removed(scene: Scene) -> Plan | None:
    workspace, op = scene.workspace, _op(scene)
    if workspace is None:
        return None
    first = opening(scene.record, op, _source(scene))
    if first is not None:
        return scene.do(first, phase=_phase(scene))
    stopping = stop_and_reap(scene, op, _source(scene))
    if stopping is not None:
        return stopping
    removing = take_down(scene, _op(scene), _source(scene))
    if removing is not None:
        return removing
    others = [snapshot.key for snapshot in scene.snapshots if snapshot.key != workspace.key]
    if len(others) < len(scene.snapshots):
        ground = Ground.ARCHIVED if scene.archived is not None else Ground.NEVER_STARTED
        return scene.do(RemoveWorkspace(workspace.key, ground))
    if others:
        return scene.block(
            Reason.SNAPSHOT_CONFLICT,
            f"snapshots {', '.join(others)} carry this uid, and the node's journal does not know them; they stay",
        )
    kept = f"kept as archive {archive_name(scene.archived)}" if scene.archived else "no task ever ran on it"
    return _let_go(scene, kept)


# ---------------------------------------------------------------------------------------------- answers


def _let_go(scene: Scene, message: str) -> Plan:
    first = opening(scene.record, _op(scene), _source(scene))
    if first is not None:
        return scene.do(first, phase=_phase(scene))
    stopping = stop_and_reap(scene, _op(scene), _source(scene))
    if stopping is not None:
        return stopping
    removing = take_down(scene, _op(scene), _source(scene))
    if removing is not None:
        return removing
    return scene.do(Finish(Outcome.SUCCESS, _phase(scene), message, release=True))


def _missing(scene: Scene, key: str) -> Plan:
    runtime = scene.runtime
    it = f"{runtime.kind.short} {runtime.name} -n {runtime.namespace}"
    message = (
        f"snapshot {key} held this runtime's data and is not on the engine any more, so it cannot be archived. "
        f"`kubectl annotate {it} {ANNOTATION_FORCE_RELEASE}=data-is-missing` lets the object go and keeps every archive: "
        "created again with restore.policy: Archive and restore.archive: NAME it goes on from one, and "
        f"{archives_to_choose_from(runtime)}. spec.deletionPolicy: Purge lets it go, too, and "
        f"removes every archive of {runtime.kind} {runtime.name} that is not marked retain: true"
    )
    scene.draft.set(ConditionType.PRESERVED, Truth.FALSE, Reason.DATA_MISSING, message)
    return scene.block(Reason.DATA_MISSING, message)


def _wait_for_ledger(scene: Scene) -> Plan:
    message = "the ledger cannot be reached; nothing is removed without it"
    scene.draft.set(ConditionType.PRESERVED, Truth.FALSE, Reason.LEDGER_UNAVAILABLE, message)
    until = scene.now + LEDGER_RETRY_SECONDS
    return scene.wait(Reason.LEDGER_UNAVAILABLE, message, until=until, phase=_phase(scene))


_RULES: tuple[Rule, ...] = (
    proof.binding_is_proven,
    _deletion_is_journalled,
    _engine_is_away,
    _released,
    _force_release,
    _frozen,
    _failed_lately,
    data.forgotten_operations_are_closed,
    _purge,
    _orphan_becomes_workspace,
    data.removal_is_taken_back,
    _task_was_there,
    _nothing_to_preserve,
    _data_is_missing,
    _archived_first,
    _then_removed,
)

_RULES_WHEN_GONE: tuple[Rule, ...] = (
    _engine_is_away,
    _released_and_gone,
    _force_release,
    _frozen,
    _failed_lately,
    _purge,
    _orphan_becomes_workspace,
    data.removal_is_taken_back,
    _task_was_there,
    _nothing_to_preserve,
    _data_is_missing,
    _archived_first,
    _then_removed,
)
