"""Steps that make, fill, archive and remove workspaces: everything that data can be lost by is in this file.

The order inside each is what makes it safe to be killed anywhere: journal first, then the effect, and what destroys
checks every ground again, against the journal and the store, right before.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

import structlog

from perdure.api.conditions import Reason
from perdure.api.names import OperationId, RuntimeRef, Uid
from perdure.plan.operations import DURABLE, later_archive_id
from perdure.plan.steps import AdoptSnapshot, Ground, KeepWorkspace, PrepareWorkspace, RemoveWorkspace, RestoreWorkspace
from perdure.plan.world import ArchiveFacts, Op, OpenOperation, PutAway, Record, Workspace
from perdure.reconcile.hands import Hands, Place, workspace_of
from perdure.reconcile.ports.archives import ArchiveRequest
from perdure.reconcile.ports.engine import Layer
from perdure.reconcile.ports.errors import ArchiveCorrupt, ArchiveOutdated, PortError
from perdure.reconcile.ports.ledger import Lease
from perdure.reconcile.workers import aside

log = structlog.get_logger(__name__)


VERIFIED_SECONDS = 300.0
"""So long an archive that this process wrote or verified is not read again before the layer goes. Disks rot, and
somebody may tidy a store up."""


@dataclass(frozen=True, slots=True)
class _Verified:
    """That an archive was good, under which operation, and when by the loop's clock, which nobody sets."""

    sequence: int
    operation: OperationId
    at: float


class DataSteps:
    """One per executor."""

    def __init__(self, hands: Hands, place: Place) -> None:
        self._hands = hands
        self._place = place
        self._verified: dict[Uid, _Verified] = {}

    async def prepare(self, step: PrepareWorkspace, ref: RuntimeRef) -> None:
        """Journal, then snapshot, then journal that it is there: the label and the record never disagree for long, and
        a snapshot without a record carries all that a record needs."""
        record = self._hands.record(ref)
        workspace = Workspace(
            key=step.key,
            n=step.n,
            image=step.image.name,
            image_digest=step.image.digest,
            chain_id=step.image.chain_id,
            gate=step.gate,
        )
        planned = replace(record, newest_n=max(record.newest_n, step.n), workspace=workspace)
        await self._hands.journal.commit(put=planned)
        await self._hands.engine.prepare_workspace(ref, workspace)
        await self._hands.journal.commit(put=replace(planned, workspace=replace(workspace, prepared=True)))

    async def adopt(self, step: AdoptSnapshot, ref: RuntimeRef) -> None:
        snapshot = step.snapshot
        workspace = Workspace(
            key=snapshot.key,
            n=snapshot.n,
            image=snapshot.image,
            image_digest=snapshot.image_digest,
            chain_id=snapshot.chain_id,
            prepared=True,
            gate=step.gate,
            # Nobody remembers whether a task ran on it: it is treated as holding data.
            ever_started=step.gate is None,
            removal_announced=step.removal_announced,
        )
        record = self._hands.record(ref)
        await self._hands.journal.commit(
            put=replace(record, newest_n=max(record.newest_n, snapshot.n), workspace=workspace)
        )
        log.info("snapshot_adopted", runtime=str(ref), uid=ref.uid, snapshot=snapshot.key)

    async def restore(self, step: RestoreWorkspace, ref: RuntimeRef) -> None:
        """The gate's label goes first and its record last: a crash between them restores again, and starts nothing."""
        layer = await self._hands.engine.layer(step.key)
        clock = asyncio.get_running_loop()
        began = clock.time()
        try:
            async with aside():
                await self._hands.archives.restore(step.archive, layer)
        except ArchiveCorrupt as error:
            await self._hands.ledger.quarantine(step.archive.sequence, str(error))
            raise
        self._hands.probe.archived("restore", step.archive.bytes, clock.time() - began)
        await self._hands.engine.open_gate(step.key)
        record = self._hands.record(ref)
        workspace = workspace_of(record)
        name = step.archive.object_name or str(step.archive.sequence)
        await self._hands.journal.commit(
            put=replace(record, workspace=replace(workspace, gate=None, restored_from=name), put_away=None)
        )
        log.info("restored", runtime=str(ref), uid=ref.uid, archive=step.archive.sequence)

    async def archive(self, ref: RuntimeRef) -> None:
        record = self._hands.record(ref)
        workspace, operation = workspace_of(record), record.operation
        if operation is None:
            raise PortError(f"no operation is open to archive {workspace.key} under", reason=Reason.INTERNAL_ERROR)
        async with self._hands.leases.kept(ref.uid) as lease:
            layer = await self._hands.engine.layer(workspace.key)
            began = asyncio.get_running_loop().time()
            facts = await self._export(ref, workspace, layer, operation.id, lease)
            self._hands.probe.archived("export", facts.bytes, asyncio.get_running_loop().time() - began)
            lease = await self._hands.leases.hold(ref.uid)
            await self._hands.ledger.finish_archive(facts, lease)
        self._note_verified(facts, operation)
        record = self._hands.record(ref)
        await self._hands.journal.commit(put=replace(record, workspace=replace(workspace_of(record), archived=facts)))
        log.info("archived", runtime=str(ref), uid=ref.uid, archive=facts.sequence, bytes=facts.bytes)

    async def _export(
        self, ref: RuntimeRef, workspace: Workspace, layer: Layer, operation: OperationId, lease: Lease
    ) -> ArchiveFacts:
        """An archive of the layer as it is now. One that the same operation made of it before somebody ran a task on it
        stays what it is; so does one that is bad, and nothing is restored from that."""
        ledger, id_ = self._hands.ledger, operation
        while True:
            sequence = await ledger.begin_archive(id_, ref, workspace, self._place.node_id, lease)
            request = ArchiveRequest(self._place.installation, ref, sequence, self._place.node_id, workspace)
            try:
                async with aside():
                    return await self._hands.archives.export(request, layer)
            except ArchiveOutdated as error:
                log.info("archive_outdated", runtime=str(ref), uid=ref.uid, archive=sequence, error=str(error))
                id_ = later_archive_id(operation, sequence)
            except ArchiveCorrupt as error:
                log.warning("archive_corrupt", runtime=str(ref), uid=ref.uid, archive=sequence, error=str(error))
                await ledger.quarantine(sequence, str(error))
            lease = await self._hands.leases.hold(ref.uid)

    async def remove_workspace(self, step: RemoveWorkspace, ref: RuntimeRef) -> None:
        """The one place where a snapshot goes: every ground is checked again here, against the journal and the store."""
        record = self._hands.record(ref)
        await self._check_ground(step, record)
        if step.ground is Ground.ARCHIVED:
            await self._announce_removal(record)
        async with self._hands.leases.effect(ref.uid):
            await self._hands.engine.remove_workspace(step.key)
        self._verified.pop(ref.uid, None)
        log.info("snapshot_removed", runtime=str(ref), uid=ref.uid, snapshot=step.key, ground=step.ground.value)

    async def _announce_removal(self, record: Record) -> None:
        """In the journal first: where it says nothing, nothing has to be taken back."""
        workspace = workspace_of(record)
        if workspace.archived is None:
            raise PortError(f"no archive of {workspace.key} is on record", reason=Reason.INTERNAL_ERROR)
        if not workspace.removal_announced:
            announced = replace(workspace, removal_announced=True)
            await self._hands.journal.commit(put=replace(record, workspace=announced))
        lease = await self._hands.leases.hold(record.ref.uid)
        await self._hands.ledger.announce_removal(workspace.archived.sequence, lease)

    async def keep_workspace(self, step: KeepWorkspace, ref: RuntimeRef) -> None:
        """In the ledger first: what is started may write, and then no archive holds all."""
        record = self._hands.record(ref)
        workspace = workspace_of(record)
        lease = await self._hands.leases.hold(ref.uid)
        await self._hands.ledger.take_removal_back(ref, step.key, lease)
        kept = replace(workspace, removal_announced=False)
        await self._hands.journal.commit(put=replace(record, workspace=kept))
        if record.operation is None or record.operation.op not in DURABLE:
            await self._hands.leases.release(ref.uid)

    async def record_put_away(self, put_away: PutAway, ref: RuntimeRef) -> None:
        """In the ledger first: from there it is known even if the journal is lost, and the data counts as missing until
        one of the two says that it is not."""
        record = self._hands.record(ref)
        archived = workspace_of(record).archived
        if archived != put_away.archive:
            raise PortError(
                f"the data of {ref} is not in archive {put_away.archive.sequence}", reason=Reason.INTERNAL_ERROR
            )
        lease = await self._hands.leases.hold(ref.uid)
        await self._hands.ledger.put_away(archived.sequence, lease)
        await self._hands.journal.commit(put=replace(record, workspace=None, put_away=put_away))
        log.info("put_away", runtime=str(ref), uid=ref.uid, archive=archived.sequence, source=put_away.source.value)

    async def _check_ground(self, step: RemoveWorkspace, record: Record) -> None:
        workspace, operation = record.workspace, record.operation
        if operation is None:
            raise _no_ground(step, "no operation is open")
        own = workspace is not None and workspace.key == step.key
        match step.ground:
            case Ground.PURGE:
                if operation.op is not Op.PURGE:
                    raise _no_ground(step, f"the open operation is {operation.op}")
            case Ground.NEVER_STARTED:
                if not own or workspace is None or workspace.ever_started:
                    raise _no_ground(step, "a task ran on it, or nobody knows")
            case Ground.ARCHIVED:
                if operation.op not in DURABLE or not operation.committed:
                    raise _no_ground(step, f"the open operation is {operation.op}, without a committed intent")
                archived = workspace.archived if own and workspace is not None else None
                if archived is None or archived.snapshot_key != step.key:
                    raise _no_ground(step, "no archive of it is on record")
                await self._check_archive(archived, record, operation)

    async def _check_archive(self, archive: ArchiveFacts, record: Record, operation: OpenOperation) -> None:
        """That it is good, and of the layer as it is: its container is gone, and nothing can run on it any more. If not,
        the layer is archived anew. Under the operation's lease: it may wait long for its turn, and read for long."""
        layer = await self._hands.engine.layer(archive.snapshot_key)
        try:
            async with self._hands.leases.kept(archive.uid), aside():
                if not self._verified_lately(archive, operation):
                    await self._hands.archives.verify(archive)
                    self._note_verified(archive, operation)
                await self._hands.archives.compare(archive, layer)
        except (ArchiveCorrupt, ArchiveOutdated) as error:
            if isinstance(error, ArchiveCorrupt):
                await self._hands.ledger.quarantine(archive.sequence, str(error))
            await self._hands.journal.commit(
                put=replace(record, workspace=replace(workspace_of(record), archived=None))
            )
            raise PortError(f"{error}; nothing was removed, and it is archived anew", reason=error.reason) from error

    def _note_verified(self, archive: ArchiveFacts, operation: OpenOperation) -> None:
        now = asyncio.get_running_loop().time()
        self._verified = {uid: known for uid, known in self._verified.items() if now - known.at < VERIFIED_SECONDS}
        self._verified[archive.uid] = _Verified(archive.sequence, operation.id, now)

    def _verified_lately(self, archive: ArchiveFacts, operation: OpenOperation) -> bool:
        known = self._verified.get(archive.uid)
        if known is None or (known.sequence, known.operation) != (archive.sequence, operation.id):
            return False
        return asyncio.get_running_loop().time() - known.at < VERIFIED_SECONDS

    async def purge_archives(self, ref: RuntimeRef) -> None:
        """Delete what is here, leave what is elsewhere to its node, and prove by listing that nothing is left here."""
        archives = self._hands.archives
        for facts in await self._hands.ledger.purgeable(ref):
            lease = await self._hands.leases.hold(ref.uid)
            await self._hands.ledger.mark_purging(ref, facts.sequence, lease)
            if facts.node_id in (None, self._place.node_id):
                await archives.delete(facts)
                await self._hands.ledger.mark_purged(facts.sequence)
        listed = frozenset(await archives.list(self._place.installation, ref))
        # Asked after the list: what is written meanwhile has its row before its first byte.
        left = listed - await self._hands.ledger.spared(ref)
        if left:
            raise PortError(
                f"purging the archives of {ref}: {sorted(left)} are still in the store and not in the catalogue; "
                "look at them, and remove them by hand if they are not wanted",
                reason=Reason.PURGE_FAILED,
                blocks_data=True,
            )
        elsewhere = await self._hands.ledger.purgeable(ref)
        if elsewhere:
            raise PortError(
                f"purging the archives of {ref}: {len(elsewhere)} are on other nodes, whose agents delete them",
                reason=Reason.PURGE_FAILED,
            )


def _no_ground(step: RemoveWorkspace, why: str) -> PortError:
    return PortError(
        f"snapshot {step.key} is not removed on the ground {step.ground.value}: {why}",
        reason=Reason.INTERNAL_ERROR,
        blocks_data=True,
    )
