"""A store of archives in memory, for the crash matrix. What it holds is in a `FakeStore`, which outlives the agent.

A call that is cut off leaves what a disk would show: half an archive, half of a layer. The hook is called there, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tests.fakes.engine import FakeMachine
from tests.fakes.journal import Hook

from perdure.api.archive import object_name
from perdure.api.conditions import Reason
from perdure.api.names import InstallationId, RuntimeRef
from perdure.plan.world import ArchiveFacts
from perdure.reconcile.ports.archives import ArchiveRequest
from perdure.reconcile.ports.archives import StoredArchive as Stored
from perdure.reconcile.ports.engine import Layer
from perdure.reconcile.ports.errors import ArchiveCorrupt, ArchiveOutdated, StoreError


@dataclass(slots=True)
class StoredArchive:
    request: ArchiveRequest
    files: dict[str, str]
    manifest: dict[str, str] | None = None
    """What the layer held; None: it was never finished."""

    @property
    def complete(self) -> bool:
        return self.manifest is not None


@dataclass(slots=True)
class FakeStore:
    """What survives the process. `broken`, when set, is why the store takes nothing."""

    archives: dict[int, StoredArchive] = field(default_factory=dict)
    broken: str | None = None


class FakeArchives:
    def __init__(self, store: FakeStore, machine: FakeMachine, on_call: Hook | None = None) -> None:
        self._store = store
        self._machine = machine
        self._on_call = on_call

    async def preflight(self, layer_bytes: int | None) -> None:
        self._call("preflight", "before")
        self._check_writable()

    async def export(self, request: ArchiveRequest, layer: Layer) -> ArchiveFacts:
        self._call("export", "before")
        self._check_writable()
        there = self._store.archives.get(request.sequence)
        files = dict(self._machine.snapshots[layer.key].files)
        if there is not None and there.complete:
            self._check_same(there, layer)
            if there.files != there.manifest:
                raise ArchiveCorrupt(f"archive {request.sequence} is not what its manifest says")
        else:
            half = dict(list(files.items())[: len(files) // 2])
            self._store.archives[request.sequence] = StoredArchive(request, half)
            self._call("export_half", "after")
            self._store.archives[request.sequence] = StoredArchive(request, files, dict(files))
        self._call("export", "after")
        return _facts(request, files)

    async def restore(self, archive: ArchiveFacts, layer: Layer) -> None:
        self._call("restore", "before")
        stored = self._verified(archive)
        target = self._machine.snapshots[layer.key].files
        target.clear()
        target.update(dict(list(stored.files.items())[: len(stored.files) // 2]))
        self._call("restore_half", "after")
        target.update(stored.files)
        self._call("restore", "after")

    async def verify(self, archive: ArchiveFacts) -> None:
        self._call("verify", "before")
        self._verified(archive)

    async def compare(self, archive: ArchiveFacts, layer: Layer) -> None:
        self._call("compare", "before")
        stored = self._stored(archive)
        if not stored.complete:
            raise ArchiveCorrupt(f"archive {archive.sequence} has no manifest")
        if _size(stored.files) != archive.bytes:
            raise ArchiveCorrupt(f"archive {archive.sequence} is not as large as the catalogue says")
        self._check_same(stored, layer)

    def _check_same(self, stored: StoredArchive, layer: Layer) -> None:
        if stored.manifest != self._machine.snapshots[layer.key].files:
            raise ArchiveOutdated(f"{layer.key} was written since archive {stored.request.sequence} was made of it")

    async def delete(self, archive: ArchiveFacts) -> None:
        self._call("delete", "before")
        self._check_writable()
        self._store.archives.pop(archive.sequence, None)
        self._call("delete", "after")

    async def survey(self, installation: InstallationId) -> AsyncIterator[Stored]:
        self._call("survey", "before")
        found = ((f"{stored.request.ref}/{stored.request.ref.uid}", it) for it, stored in self._store.archives.items())
        for folder, sequence in sorted(found):
            stored = self._store.archives[sequence]
            if stored.request.installation != installation:
                continue
            path = f"{folder}/{sequence}"
            if stored.complete:
                yield Stored(path, stored.request.ref, _facts(stored.request, stored.files))
            else:
                yield Stored(path, problem="there is no manifest: it was never finished")

    async def list(self, installation: InstallationId, identity_of: RuntimeRef) -> Sequence[int]:
        self._call("list", "before")
        return tuple(
            sequence
            for sequence, stored in sorted(self._store.archives.items())
            if stored.request.installation == installation
            and (stored.request.ref.kind, stored.request.ref.namespace, stored.request.ref.name)
            == (identity_of.kind, identity_of.namespace, identity_of.name)
        )

    def _verified(self, archive: ArchiveFacts) -> StoredArchive:
        stored = self._stored(archive)
        if not stored.complete or digest(stored.files) != archive.sha256:
            raise ArchiveCorrupt(f"archive {archive.sequence} is not what the catalogue says")
        return stored

    def _stored(self, archive: ArchiveFacts) -> StoredArchive:
        doing, stored = f"reading archive {archive.sequence}", self._store.archives.get(archive.sequence)
        if self._store.broken is not None:
            raise StoreError(f"{doing}: {self._store.broken}", reason=Reason.STORE_UNAVAILABLE)
        if stored is None:
            raise StoreError(f"{doing}: it is not in the store", reason=Reason.ARCHIVE_NOT_REACHABLE)
        return stored

    def _check_writable(self) -> None:
        if self._store.broken is not None:
            raise StoreError(f"the store takes nothing: {self._store.broken}", reason=Reason.STORE_UNAVAILABLE)

    def _call(self, name: str, when: Literal["before", "after"]) -> None:
        if self._on_call is not None:
            self._on_call(f"archives.{name}", when)


def digest(files: Mapping[str, str]) -> str:
    """The hash of what an archive holds."""
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()


def _size(files: Mapping[str, str]) -> int:
    """How many bytes an archive of them has."""
    return 100 * len(files)


def _facts(request: ArchiveRequest, files: Mapping[str, str]) -> ArchiveFacts:
    ref, workspace = request.ref, request.workspace
    size = _size(files)
    return ArchiveFacts(
        sequence=request.sequence,
        kind=ref.kind,
        namespace=ref.namespace,
        name=ref.name,
        uid=ref.uid,
        store="fake",
        node_id=request.node_id,
        snapshot_key=workspace.key,
        image=workspace.image,
        image_digest=workspace.image_digest,
        chain_id=workspace.chain_id,
        sha256=digest(files),
        bytes=size,
        entries=len(files),
        uncompressed_bytes=size,
        empty=not files,
        object_name=object_name(ref.kind, ref.name, request.sequence),
    )
