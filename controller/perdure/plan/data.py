"""Rules about data: adopt what is pinned, make a workspace once, never mistake a missing one for a new one."""

from __future__ import annotations

from dataclasses import replace

from perdure.api.conditions import ConditionType, Reason, Truth
from perdure.api.phases import Phase
from perdure.api.runtime import DesiredState, RestorePolicy
from perdure.plan.certainty import Present
from perdure.plan.data_source import Fresh, FromArchive, Undecided, choose
from perdure.plan.scene import Scene, sandbox_if_missing
from perdure.plan.steps import (
    AdoptSnapshot,
    EnsureImage,
    Note,
    Plan,
    PrepareWorkspace,
    RestoreWorkspace,
)
from perdure.plan.view import archive_name
from perdure.plan.world import (
    ArchiveFacts,
    LedgerFacts,
    Op,
    Source,
)

UNDECIDED_RETRY_SECONDS = 5.0


def orphan_is_adopted(scene: Scene) -> Plan | None:
    """A pinned snapshot of this uid without a record: the journal or the container was lost, the data was not."""
    if scene.workspace is not None or not scene.snapshots:
        return None
    newest = max(scene.snapshots, key=lambda snapshot: snapshot.n)
    if newest.gate is None:
        return scene.under(Op.ADOPT, Source.AUTO_RECONCILE, AdoptSnapshot(newest, None))
    match scene.world.observed.ledger:
        case Present(it=LedgerFacts(latest=latest, named=named)):
            for archive in (latest, named):
                if archive is not None and archive.sequence == newest.gate:
                    return scene.under(Op.ADOPT, Source.AUTO_RECONCILE, AdoptSnapshot(newest, archive))
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


def workspace_must_exist(scene: Scene) -> Plan | None:
    """A first start: decide where the data comes from, then make the workspace. A stopped runtime needs none yet."""
    if scene.workspace is not None or scene.runtime.spec.desired_state is not DesiredState.RUNNING:
        return None
    freeze = scene.world.freeze
    asked_for_nothing = scene.runtime.spec.restore.policy is RestorePolicy.NONE
    if freeze is not None and freeze.reason is Reason.IDENTITY_CHANGED and not asked_for_nothing:
        # Another ledger knows of no archive: "nothing to bring back" is not its word to give.
        scene.draft.set(ConditionType.DEGRADED, Truth.TRUE, freeze.reason, freeze.message)
        return scene.wait(freeze.reason, freeze.message, phase=Phase.PENDING)
    match choose(scene.runtime, scene.world.observed.ledger):
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
            f"Set spec.image back to {archive.image}, or set restore.policy: None to start on fresh data",
        )
    n = scene.record.newest_n + 1
    prepare = PrepareWorkspace(scene.world.ref.snapshot_key(n), n, image, archive)
    return scene.under(op, Source.KUBECTL, prepare, *sandbox_if_missing(scene))


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
                "nothing is started on half of it. To go on from the archive, delete the object and create it again",
            )
        if not workspace.prepared:
            seen = replace(scene.record, workspace=replace(workspace, prepared=True))
            return scene.do(Note(seen, "the engine has the snapshot"))
        return None
    if workspace.prepared or workspace.ever_started:
        return scene.block(
            Reason.DATA_MISSING,
            f"snapshot {workspace.key} held this runtime's data and is not on the engine any more. Nothing is started "
            "on fresh data. To go on from the last archive, delete the object and create it again",
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
