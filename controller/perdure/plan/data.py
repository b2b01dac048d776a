"""Rules about data: adopt what is pinned, make a workspace once, never mistake a missing one for a new one."""

from __future__ import annotations

from dataclasses import replace

from perdure.api import names
from perdure.api.conditions import ConditionType, Reason, Truth
from perdure.api.phases import Phase
from perdure.api.runtime import DesiredState, RestorePolicy
from perdure.plan.certainty import Present
from perdure.plan.data_source import Fresh, FromArchive, Undecided, choose, way_on
from perdure.plan.requests import is_halted
from perdure.plan.scene import Scene, sandbox_if_missing
from perdure.plan.steps import (
    AdoptSnapshot,
    CloseForgotten,
    EnsureImage,
    Finish,
    KeepWorkspace,
    Note,
    Plan,
    PrepareWorkspace,
    RecordPutAway,
    RestoreWorkspace,
    Waiting,
)
from perdure.plan.view import archive_name
from perdure.plan.world import (
    ArchiveFacts,
    LedgerFacts,
    Op,
    Outcome,
    PutAway,
    SnapshotFacts,
    Source,
)

UNDECIDED_RETRY_SECONDS = 5.0


def orphan_is_adopted(scene: Scene) -> Plan | None:
    """A pinned snapshot of this uid without a record: the journal or the container was lost, the data was not."""
    if scene.workspace is not None or not scene.snapshots:
        return None
    newest = max(scene.snapshots, key=lambda snapshot: snapshot.n)
    if newest.gate is None:
        return scene.under(
            Op.ADOPT, Source.AUTO_RECONCILE, AdoptSnapshot(newest, None, may_be_announced(scene, newest))
        )
    match scene.world.observed.ledger:
        case Present(it=LedgerFacts(latest=latest, named=named, put_away=put_away)):
            for archive in (latest, named, put_away):
                if archive is not None and archive.sequence == newest.gate:
                    return scene.under(Op.ADOPT, Source.AUTO_RECONCILE, AdoptSnapshot(newest, archive, False))
            return scene.block(
                Reason.ARCHIVE_NOT_FOUND,
                f"archive {newest.gate} was being restored into {newest.key} and is not in the catalogue any more",
            )
        case _:
            return scene.wait(
                Reason.LEDGER_UNAVAILABLE,
                "an unfinished restore was found; the ledger must say from which archive",
                until=scene.now + UNDECIDED_RETRY_SECONDS,
            )


def may_be_announced(scene: Scene, found: SnapshotFacts) -> bool:
    """Whether the ledger may have it that this snapshot, which is there, is about to be removed."""
    match scene.world.observed.ledger:
        case Present(it=LedgerFacts(put_away=archive)):
            return archive is not None and archive.snapshot_key == found.key
        case _:
            return True


def forgotten_operations_are_closed(scene: Scene) -> Plan | None:
    """The journal was lost while something was under way: the history gets its end, then it is looked at anew."""
    ledger, record = scene.world.observed.ledger, scene.record
    adopted = record.workspace is not None and record.workspace.removal_announced
    if not isinstance(ledger, Present) or (record.operations and not adopted):
        return None
    own = record.operation.id if record.operation is not None else None
    forgotten = tuple(id_ for id_ in ledger.it.unfinished if id_ != own)
    if not forgotten:
        return None
    shown = next((phase for phase in Phase if phase == scene.runtime.status.phase), Phase.PENDING)
    return Plan(steps=(CloseForgotten(forgotten, shown),))


def removal_is_taken_back(scene: Scene) -> Plan | None:
    """What was to be removed is to be used again, or somebody uses it already: first that is said where it was announced."""
    workspace = scene.workspace
    if workspace is None or not workspace.removal_announced:
        return None
    here = any(snapshot.key == workspace.key for snapshot in scene.snapshots)
    to_run = not scene.runtime.terminating and scene.runtime.spec.desired_state is DesiredState.RUNNING
    if here and (scene.task is not None or (to_run and not is_halted(scene))):
        return scene.do(KeepWorkspace(workspace.key))
    return None


def known_put_away(scene: Scene) -> ArchiveFacts | None:
    """The archive that a clean-up left in the place of the snapshot, by the journal or, where that was lost, by the
    ledger. A status that shows newer data than that proves that it is not all."""
    if scene.workspace is not None and scene.workspace.ever_started:
        return None
    if scene.record.put_away is not None:
        return scene.record.put_away.archive
    match scene.world.observed.ledger:
        case Present(it=LedgerFacts(released=False, put_away=archive)) if archive is not None:
            shown = scene.runtime.status.snapshot_key
            return archive if shown in (None, archive.snapshot_key) else None
        case _:
            return None


def put_away_is_remembered(scene: Scene) -> Plan | None:
    """The journal was lost since the data was put away: the ledger has it. Keys of snapshots are never used again."""
    if scene.workspace is not None or scene.snapshots or scene.record.put_away is not None:
        return None
    archive = known_put_away(scene)
    if archive is None:
        return _wait_for_who_knows(scene)
    known = replace(
        scene.record,
        phase=Phase.REMOVED,
        put_away=PutAway(archive, Source.AUTO_RECONCILE),
        newest_n=max(scene.record.newest_n, names.generation(archive.snapshot_key)),
    )
    return Plan(steps=(Note(known, "the ledger has it that the data was archived and put away"),))


def _wait_for_who_knows(scene: Scene) -> Plan | None:
    """Nothing is on record, and the status shows an archive or data of this life: what that means only the ledger can
    say."""
    status, ledger = scene.runtime.status, scene.world.observed.ledger
    shown = status.last_archive or status.snapshot_key
    if shown is None or scene.record.phase is not None or isinstance(ledger, Present):
        return None
    until = scene.now + UNDECIDED_RETRY_SECONDS
    message = f"the ledger must say whether the data of this runtime was archived; its status shows {shown}"
    return Plan(wake_at=until, waiting=Waiting(Reason.LEDGER_UNAVAILABLE, message, until))


def task_was_there(scene: Scene, phase: Phase | None = None) -> Plan | None:
    """Whoever started it: from now on the layer holds data, and an archive of it is out of date."""
    workspace = scene.workspace
    if scene.task is None or workspace is None or (workspace.ever_started and workspace.archived is None):
        return None
    touched = replace(workspace, ever_started=True, archived=None)
    return scene.do(Note(replace(scene.record, workspace=touched), "a task was found on it"), phase=phase)


def archive_is_out_of_date(scene: Scene) -> Plan | None:
    """Somebody ran a task on data that is to be cleaned up: what is archived is not all any more."""
    return task_was_there(scene) if scene.archived is not None else None


def workspace_must_exist(scene: Scene) -> Plan | None:
    """A first start: decide where the data comes from, then make the workspace. A stopped runtime needs none yet."""
    if scene.workspace is not None or scene.runtime.spec.desired_state is not DesiredState.RUNNING:
        return None
    put_away, operation = scene.record.put_away, scene.record.operation
    if put_away is not None and operation is not None and operation.op is Op.CLEANUP:
        kept = f"its data is kept as archive {archive_name(put_away.archive)}"
        return scene.do(Finish(Outcome.SUCCESS, Phase.REMOVED, kept), phase=Phase.REMOVED)
    if put_away is not None and is_halted(scene):
        return None  # it ended by itself, and was cleaned up since: nobody asked for it to run again
    freeze = scene.world.freeze
    asked_for_nothing = scene.runtime.spec.restore.policy is RestorePolicy.NONE
    if freeze is not None and freeze.reason is Reason.IDENTITY_CHANGED and not asked_for_nothing:
        # Another ledger knows of no archive: "nothing to bring back" is not its word to give.
        scene.draft.set(ConditionType.DEGRADED, Truth.TRUE, freeze.reason, freeze.message)
        return scene.wait(freeze.reason, freeze.message, phase=Phase.PENDING)
    choice = FromArchive(put_away.archive) if put_away else choose(scene.runtime, scene.world.observed.ledger)
    match choice:
        case Undecided(reason, message, phase):
            if phase is Phase.BLOCKED:
                return scene.block(reason, message)
            return scene.wait(reason, message, until=scene.now + UNDECIDED_RETRY_SECONDS, phase=phase)
        case FromArchive(found):
            archive: ArchiveFacts | None = found
        case Fresh():
            archive = None
    op = Op.RESTORE if archive is not None else Op.START
    image = scene.image
    if image is None:
        ensure = EnsureImage(scene.runtime.spec.image, scene.runtime.spec.image_pull_policy)
        return scene.under(op, Source.KUBECTL, ensure)
    if archive is not None and archive.chain_id != image.chain_id:
        return scene.block(
            Reason.IMAGE_CHANGED,
            f"archive {archive_name(archive)} was written on image {archive.image}, and {image.name} has other layers. "
            f"Set spec.image back to {archive.image}{_or_nothing(scene)}",
        )
    n = scene.record.newest_n + 1
    prepare = PrepareWorkspace(scene.world.ref.snapshot_key(n), n, image, archive)
    return scene.under(op, Source.KUBECTL, prepare, *sandbox_if_missing(scene))


def _or_nothing(scene: Scene) -> str:
    """The other way out, for data of an earlier life. This life's own is never started without."""
    return "" if scene.record.put_away is not None else ", or set restore.policy: None to start on fresh data"


def workspace_is_where_it_was(scene: Scene) -> Plan | None:
    workspace = scene.workspace
    if workspace is None:
        return None
    found = next((snapshot for snapshot in scene.snapshots if snapshot.key == workspace.key), None)
    if found is not None:
        if found.chain_id != workspace.chain_id:
            return scene.block(
                Reason.SNAPSHOT_CONFLICT,
                f"snapshot {found.key} stands on {found.chain_id}, the node's journal says {workspace.chain_id}: "
                "somebody replaced it. It is left alone",
            )
        if found.gate is not None and workspace.gate is None:
            return scene.block(
                Reason.RESTORE_PENDING,
                f"archive {found.gate} was being restored into {found.key}, and the node's journal does not know of it: "
                f"nothing is started on half of it. {way_on(scene.runtime)}",
            )
        if not workspace.prepared:
            seen = replace(scene.record, workspace=replace(workspace, prepared=True))
            return scene.do(Note(seen, "the engine has the snapshot"))
        return None
    if scene.archived is not None:
        operation = scene.record.operation
        source = operation.source if operation is not None and operation.op is Op.CLEANUP else Source.AUTO_RECONCILE
        return scene.do(RecordPutAway(PutAway(scene.archived, source)))
    if workspace.prepared or workspace.ever_started:
        return scene.block(
            Reason.DATA_MISSING,
            f"snapshot {workspace.key} held this runtime's data and is not on the engine any more. Nothing is started "
            f"on fresh data. {way_on(scene.runtime)}",
        )
    never_made = replace(scene.record, workspace=None)
    return scene.do(Note(never_made, "the snapshot was never made"))


def restore_is_finished_first(scene: Scene) -> Plan | None:
    workspace = scene.workspace
    if workspace is None or workspace.gate is None or scene.runtime.spec.desired_state is not DesiredState.RUNNING:
        return None
    if workspace.ever_started or scene.task is not None:
        return scene.block(
            Reason.SNAPSHOT_CONFLICT,
            f"a task was on {workspace.key} before the restore into it was finished: what it wrote is not written over",
        )
    return scene.under(Op.RESTORE, Source.KUBECTL, RestoreWorkspace(workspace.key, workspace.gate))


def name_of_image(scene: Scene) -> Plan | None:
    """Another name for the same layers is taken over; other layers are refused while the data stands on these."""
    workspace, spec = scene.workspace, scene.runtime.spec
    if workspace is None or workspace.image == spec.image:
        return None
    wanted = scene.world.observed.wanted_image
    if isinstance(wanted, Present) and wanted.it.chain_id == workspace.chain_id:
        renamed = replace(workspace, image=spec.image, image_digest=wanted.it.digest)
        return scene.do(Note(replace(scene.record, workspace=renamed), "the new image has the same layers"))
    message = (
        f"spec.image is {spec.image}, and the data stands on the layers of {workspace.image}. Moving data to another "
        f"image is not offered yet: set spec.image back to {workspace.image}. It goes on with {workspace.image}"
    )
    scene.draft.set(ConditionType.DEGRADED, Truth.TRUE, Reason.IMAGE_CHANGED, message)
    return None
