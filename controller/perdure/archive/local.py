"""The `Archives` port over a folder of this node. The agent makes one per store and gives it to the executor.

Every long job is a child process (`worker`); what is left here is short and runs in threads, so the event loop never
waits for a disk. A few jobs run at once, the others wait in the order in which they came. A job is killed when it has not
moved for `STALL_SECONDS`, and when it is cancelled.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import msgspec
import structlog

import perdure
from perdure.api.conditions import Reason
from perdure.api.names import ChainId, InstallationId, Kind, NamespaceUid, NodeId, RuntimeRef, SnapshotKey, Uid
from perdure.archive import inventory, layout
from perdure.archive.faults import Fault, FaultKind, store_errors
from perdure.archive.jobs import (
    LONGEST_ANSWER,
    Answer,
    Compare,
    Done,
    Export,
    Failed,
    Job,
    Known,
    Progress,
    Restore,
    Verify,
)
from perdure.archive.manifest import Source
from perdure.archive.stages import TOOLS_PATH, missing_tools
from perdure.plan.world import ArchiveFacts
from perdure.reconcile.ports.archives import ArchiveRequest, StoredArchive
from perdure.reconcile.ports.engine import Layer
from perdure.reconcile.ports.errors import ArchiveCorrupt, ArchiveOutdated, PortError, StoreError

STALL_SECONDS: Final = 300.0
"""A job that reports nothing for so long hangs (a dead disk, a lost mount)."""
JOBS_AT_ONCE: Final = 3
"""Each takes hundreds of MiB for what it knows of a layer, and compresses on all processors."""
_QUICK_SECONDS: Final = 30.0
_SURVEYED_AT_ONCE: Final = 16
_KILL_SECONDS: Final = 10.0
_SOURCE_ROOT = str(Path(perdure.__file__).resolve().parent.parent)

_REASONS = {
    FaultKind.STORE_FULL: Reason.STORE_FULL,
    FaultKind.STORE_UNAVAILABLE: Reason.STORE_UNAVAILABLE,
    FaultKind.ARCHIVE_MISSING: Reason.ARCHIVE_NOT_REACHABLE,
    FaultKind.ARCHIVE_FAILED: Reason.ARCHIVE_FAILED,
    FaultKind.RESTORE_FAILED: Reason.RESTORE_FAILED,
}

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LocalStore:
    """One store: a folder on a disk of this node. `root` must be there before anything is asked (`open` makes it)."""

    root: Path
    node_id: NodeId
    name: str = "default"
    reserve: int = 64 << 20
    """Bytes that must stay free in the store after an archive was written."""
    stall_seconds: float = STALL_SECONDS
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(JOBS_AT_ONCE), repr=False, compare=False)
    """Of jobs, first come, first served."""

    async def open(self) -> None:
        """Make the folder, try it, and remove what jobs of a killed agent left. Once, at start. Raises `StoreError`."""
        await self._in_thread(self._open)

    def _open(self) -> None:
        with store_errors(f"making the store {self.root}"):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            layout.probe(self.root)
            swept = layout.sweep_store(self.root)
        if swept:
            log.info("store_swept", store=self.name, path=str(self.root), files=swept)

    async def preflight(self, layer_bytes: int | None) -> None:
        await self._in_thread(self._preflight, layer_bytes)

    def _preflight(self, layer_bytes: int | None) -> None:
        missing = missing_tools()
        if missing:
            raise Fault(FaultKind.STORE_UNAVAILABLE, f"archives need programs: apt-get install {' '.join(missing)}")
        free = layout.probe(self.root)
        needed = (layer_bytes or 0) + self.reserve
        if free < needed:
            raise Fault(
                FaultKind.STORE_FULL,
                f"the store {self.root} has {free >> 20} MiB free, and {needed >> 20} MiB are needed "
                f"(the layer, and a reserve of {self.reserve >> 20} MiB); enlarge its disk, or purge names that nobody "
                "needs (README, When something is stuck)",
            )

    async def export(self, request: ArchiveRequest, layer: Layer) -> ArchiveFacts:
        if request.workspace.key != layer.key:
            raise ValueError(f"asked to archive {request.workspace.key}, but the layer is {layer.key}")
        ref, workspace = request.ref, request.workspace
        source = Source(
            installation=request.installation,
            kind=ref.kind.value,
            namespace=ref.namespace,
            namespace_uid=ref.namespace_uid,
            name=ref.name,
            uid=ref.uid,
            sequence=request.sequence,
            node_id=request.node_id,
            snapshot_key=workspace.key,
            image=workspace.image,
            image_digest=workspace.image_digest,
            chain_id=workspace.chain_id,
        )
        folder = (request.installation, ref.namespace, ref.kind.value, ref.name, ref.uid)
        job = Export(
            store=str(self.root), folder=folder, sequence=request.sequence, source=source, upper=str(layer.upper)
        )
        try:
            done = await self._run(job)
        except (asyncio.CancelledError, StoreError):
            with contextlib.suppress(StoreError):  # the first error is the one to tell; the next export sweeps again
                await asyncio.shield(self._in_thread(self._sweep, folder))
            raise
        log.info(
            "archive_written",
            runtime=str(ref),
            uid=ref.uid,
            sequence=request.sequence,
            bytes=done.bytes,
            entries=done.entries,
        )
        return self._facts(request, done)

    def _facts(self, request: ArchiveRequest, done: Done) -> ArchiveFacts:
        return ArchiveFacts(
            sequence=request.sequence,
            kind=request.ref.kind,
            namespace=request.ref.namespace,
            name=request.ref.name,
            uid=request.ref.uid,
            store=self.name,
            node_id=self.node_id,
            snapshot_key=request.workspace.key,
            image=request.workspace.image,
            image_digest=request.workspace.image_digest,
            chain_id=request.workspace.chain_id,
            sha256=done.sha256,
            bytes=done.bytes,
            entries=done.entries,
            uncompressed_bytes=done.uncompressed_bytes,
            empty=done.empty,
        )

    def _sweep(self, folder: tuple[str, ...]) -> None:
        """Remove the temporary files of a job that was killed."""
        with store_errors(f"cleaning up in {self.root}"):
            try:
                with layout.open_folder(self.root, folder) as opened, layout.locked(opened):
                    layout.sweep_partial(opened)
            except FileNotFoundError:
                return

    async def restore(self, archive: ArchiveFacts, layer: Layer) -> None:
        known = await self._in_thread(self._known, archive)
        await self._run(Restore(archive=known, key=layer.key, upper=str(layer.upper), staging=str(layer.staging_root)))
        log.info(
            "archive_restored", runtime=_runtime(archive), uid=archive.uid, sequence=archive.sequence, into=layer.key
        )

    async def verify(self, archive: ArchiveFacts) -> None:
        await self._run(Verify(archive=await self._in_thread(self._known, archive)))

    async def compare(self, archive: ArchiveFacts, layer: Layer) -> None:
        await self._run(Compare(archive=await self._in_thread(self._known, archive), upper=str(layer.upper)))

    def _known(self, archive: ArchiveFacts) -> Known:
        return Known(
            store=str(self.root),
            folder=self._folder(archive),
            sequence=archive.sequence,
            uid=archive.uid,
            snapshot_key=archive.snapshot_key,
            chain_id=archive.chain_id,
            sha256=archive.sha256,
            bytes=archive.bytes,
            entries=archive.entries,
            uncompressed_bytes=archive.uncompressed_bytes,
        )

    def _folder(self, archive: ArchiveFacts) -> tuple[str, ...]:
        """Where an archive is. The catalogue's row does not say the installation; the uid is in one of them only."""
        if archive.store != self.name:
            raise Fault(FaultKind.STORE_UNAVAILABLE, f"archive {archive.sequence} is in the store {archive.store!r}")
        below = (archive.namespace, archive.kind.value, archive.name, archive.uid)
        with store_errors(f"looking for archive {archive.sequence} in {self.root}"):
            found = []
            for installation in layout.folders(self.root, ()):
                try:
                    with layout.open_folder(self.root, (installation, *below)) as folder:
                        if archive.sequence in layout.sequences_in(folder):
                            found.append(installation)
                except FileNotFoundError:
                    continue
        if len(found) != 1:
            raise Fault(
                FaultKind.ARCHIVE_MISSING,
                f"archive {archive.sequence} of {_runtime(archive)} is in {len(found)} places of the store {self.root}; "
                "check that the store is mounted and was not copied into itself",
            )
        return (found[0], *below)

    async def delete(self, archive: ArchiveFacts) -> None:
        await self._in_thread(self._delete, archive)
        log.info("archive_deleted", runtime=_runtime(archive), uid=archive.uid, sequence=archive.sequence)

    def _delete(self, archive: ArchiveFacts) -> None:
        with store_errors(f"deleting archive {archive.sequence} from {self.root}"):
            below = (archive.namespace, archive.kind.value, archive.name, archive.uid)
            for installation in layout.folders(self.root, ()):
                try:
                    with layout.open_folder(self.root, (installation, *below)) as folder, layout.locked(folder):
                        layout.remove(folder, archive.sequence)
                except FileNotFoundError:
                    continue
                layout.prune(self.root, (installation, *below))

    async def survey(self, installation: InstallationId) -> AsyncIterator[StoredArchive]:
        found = inventory.survey(self.root, installation)
        while batch := await self._in_thread(self._some_of, found):
            for one in batch:
                yield self._stored(one)

    def _some_of(self, found: Iterator[inventory.Found]) -> builtins.list[inventory.Found]:
        with store_errors(f"looking through {self.root}"):
            return [*islice(found, _SURVEYED_AT_ONCE)]

    def _stored(self, found: inventory.Found) -> StoredArchive:
        if found.brief is None:
            return StoredArchive(found.path, problem=found.problem)
        brief, source = found.brief, found.brief.contents.source
        ref = RuntimeRef(
            Kind(source.kind), source.namespace, source.name, Uid(source.uid), NamespaceUid(source.namespace_uid)
        )
        facts = ArchiveFacts(
            sequence=source.sequence,
            kind=ref.kind,
            namespace=ref.namespace,
            name=ref.name,
            uid=ref.uid,
            store=self.name,
            node_id=self.node_id,
            snapshot_key=SnapshotKey(source.snapshot_key),
            image=source.image,
            image_digest=source.image_digest,
            chain_id=ChainId(source.chain_id),
            sha256=brief.sha256,
            bytes=brief.bytes,
            entries=brief.contents.entries,
            uncompressed_bytes=brief.uncompressed_bytes,
            empty=brief.empty,
        )
        return StoredArchive(found.path, ref, facts)

    async def list(self, installation: InstallationId, identity_of: RuntimeRef) -> Sequence[int]:
        return await self._in_thread(self._list, installation, identity_of)

    def _list(self, installation: InstallationId, identity_of: RuntimeRef) -> tuple[int, ...]:
        parts = (installation, identity_of.namespace, identity_of.kind.value, identity_of.name)
        found: set[int] = set()
        with store_errors(f"listing archives of {identity_of} in {self.root}"):
            for uid in layout.folders(self.root, parts):
                with layout.open_folder(self.root, (*parts, uid)) as folder:
                    found |= {
                        sequence
                        for sequence in layout.sequences_in(folder)
                        if not _is_of_another_namespace(folder, sequence, identity_of)
                    }
        return tuple(sorted(found))

    async def _in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            async with asyncio.timeout(_QUICK_SECONDS):
                return await asyncio.to_thread(call, *args, **kwargs)
        except Fault as fault:
            raise _port_error(fault) from fault
        except TimeoutError as error:
            message = f"the store {self.root} did not answer within {_QUICK_SECONDS:.0f} s; check its disk or mount"
            raise StoreError(message, reason=Reason.STORE_UNAVAILABLE) from error

    async def _run(self, job: Job) -> Done:
        """Run a job when its turn has come. Cancelled before that, it leaves its place."""
        waits = self.turns.locked()
        if waits:
            log.info("archive_job_waits", store=self.name, job=type(job).__name__, at_once=JOBS_AT_ONCE)
        async with self.turns:
            if waits:
                log.info("archive_job_begins", store=self.name, job=type(job).__name__)
            return await self._work(job)

    async def _work(self, job: Job) -> Done:
        """Run a job in a worker to its end. Killed with all that it started when it stalls, or when this is cancelled."""
        command = (sys.executable, "-P", "-s", "-m", "perdure.archive.worker", str(os.getpid()))
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={"PATH": TOOLS_PATH, "LC_ALL": "C.UTF-8", "PYTHONPATH": _SOURCE_ROOT},
            limit=LONGEST_ANSWER,
        )
        ends_by_itself = False
        try:
            done = await self._converse(process, job)
            ends_by_itself = True
            return done
        except Fault as fault:
            raise _port_error(fault) from fault
        finally:
            await asyncio.shield(_end(process, terminate=not ends_by_itself))

    async def _converse(self, process: asyncio.subprocess.Process, job: Job) -> Done:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the worker was started without pipes")
        process.stdin.write(msgspec.json.encode(job))
        process.stdin.close()
        while True:
            try:
                async with asyncio.timeout(self.stall_seconds):
                    line = await process.stdout.readline()
            except TimeoutError as error:
                raise Fault(
                    FaultKind.STORE_UNAVAILABLE,
                    f"a job on the store {self.root} did not move for {self.stall_seconds:.0f} s and was ended; "
                    "check the disks of the store and of the engine",
                ) from error
            except ValueError as error:
                raise Fault(
                    _failure_of(job), f"the archive worker said more than {LONGEST_ANSWER} bytes at once; see its log"
                ) from error
            if not line:
                raise Fault(
                    _failure_of(job), f"the archive worker died while it worked in {self.root}; see the agent's log"
                )
            match msgspec.json.decode(line, type=Answer):
                case Done() as done:
                    return done
                case Failed(kind, message):
                    raise Fault(kind, message)
                case Progress():
                    continue


def _is_of_another_namespace(folder: int, sequence: int, ref: RuntimeRef) -> bool:
    """Whether the manifest proves that the namespace was an earlier one of the same name: that is another identity."""
    source = inventory.source_of(folder, sequence)
    return source is not None and source.namespace_uid != ref.namespace_uid


def _failure_of(job: Job) -> FaultKind:
    """What it is called when a worker dies without a word."""
    match job:
        case Export():
            return FaultKind.ARCHIVE_FAILED
        case Verify() | Compare():
            return FaultKind.STORE_UNAVAILABLE
        case Restore():
            return FaultKind.RESTORE_FAILED


async def _end(process: asyncio.subprocess.Process, *, terminate: bool) -> None:
    """Be sure that the worker and all below it are gone. SIGTERM: its keeper kills, waits and ends."""
    if terminate and process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
    try:
        async with asyncio.timeout(_KILL_SECONDS):
            await process.wait()
    except TimeoutError:
        log.warning("archive_worker_killed", pid=process.pid)
        process.kill()
        await process.wait()


def _port_error(fault: Fault) -> PortError:
    if fault.kind is FaultKind.ARCHIVE_CORRUPT:
        return ArchiveCorrupt(fault.message)
    if fault.kind is FaultKind.ARCHIVE_OUTDATED:
        return ArchiveOutdated(fault.message)
    return StoreError(fault.message, reason=_REASONS[fault.kind])


def _runtime(archive: ArchiveFacts) -> str:
    return f"{archive.kind}/{archive.namespace}/{archive.name}"
