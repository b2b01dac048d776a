"""What every `Archives` does: the local store on real folders and the fake of the crash matrix."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path

import pytest
from tests.fakes.archives import FakeArchives, FakeStore
from tests.fakes.engine import FakeMachine, FakeSnapshot

from perdure.api.conditions import Reason
from perdure.api.names import ChainId, InstallationId, Kind, NamespaceUid, NodeId, RuntimeRef, Uid
from perdure.archive.local import LocalStore
from perdure.plan.world import SnapshotFacts, Workspace
from perdure.reconcile.ports.archives import ArchiveRequest, Archives
from perdure.reconcile.ports.engine import Layer
from perdure.reconcile.ports.errors import ArchiveCorrupt, ArchiveOutdated, StoreError

INSTALLATION = InstallationId("cluster-1")
NODE = NodeId("node-1")
REF = RuntimeRef(Kind.GAME, "arena", "server", Uid("uid-1"), NamespaceUid("ns-1"))
FILES = {"save": "level 3", "log": "a line"}


class Rig(ABC):
    """An `Archives` with layers to archive, and with a disk that a test may spoil."""

    archives: Archives

    @abstractmethod
    def layer(self, n: int, files: dict[str, str] | None = None) -> Layer:
        """Make the layer of generation `n`, with `files` in it."""

    @abstractmethod
    def files(self, layer: Layer) -> dict[str, str]: ...

    @abstractmethod
    def write(self, layer: Layer, name: str, content: str) -> None:
        """Somebody runs a task on it."""

    @abstractmethod
    def damage(self, sequence: int) -> None: ...

    @abstractmethod
    def take_store_away(self) -> None: ...


class LocalRig(Rig):
    def __init__(self, base: Path) -> None:
        self._base = base
        (base / "store").mkdir()
        (base / "staging").mkdir(mode=0o700)
        self.archives = LocalStore(base / "store", NODE, reserve=0)

    def layer(self, n: int, files: dict[str, str] | None = None) -> Layer:
        upper = self._base / str(n) / "fs"
        upper.mkdir(parents=True)
        for name, content in (files or {}).items():
            (upper / name).write_text(content)
        return Layer(REF.snapshot_key(n), upper, self._base / "staging")

    def files(self, layer: Layer) -> dict[str, str]:
        return {path.name: path.read_text() for path in layer.upper.iterdir()}

    def write(self, layer: Layer, name: str, content: str) -> None:
        (layer.upper / name).write_text(content)

    def damage(self, sequence: int) -> None:
        (found,) = (self._base / "store").rglob(f"{sequence}.tar.zst")
        os.truncate(found, found.stat().st_size - 1)

    def take_store_away(self) -> None:
        (self._base / "store").rename(self._base / "elsewhere")


class FakeRig(Rig):
    def __init__(self) -> None:
        self._machine, self._store = FakeMachine(), FakeStore()
        self.archives = FakeArchives(self._store, self._machine)

    def layer(self, n: int, files: dict[str, str] | None = None) -> Layer:
        key = REF.snapshot_key(n)
        facts = SnapshotFacts(key, n, ChainId("chain-1"), "image:1", "sha256:1", None)
        self._machine.snapshots[key] = FakeSnapshot(INSTALLATION, REF, facts, files=dict(files or {}))
        return Layer(key, Path("/nowhere"), Path("/nowhere"))

    def files(self, layer: Layer) -> dict[str, str]:
        return self._machine.snapshots[layer.key].files

    def write(self, layer: Layer, name: str, content: str) -> None:
        self._machine.snapshots[layer.key].files[name] = content

    def damage(self, sequence: int) -> None:
        self._store.archives[sequence].files.popitem()

    def take_store_away(self) -> None:
        self._store.broken = "it is away"


@pytest.fixture(params=[pytest.param("local", marks=pytest.mark.root), "fake"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    return LocalRig(tmp_path) if request.param == "local" else FakeRig()


def request_for(layer: Layer, sequence: int, ref: RuntimeRef = REF) -> ArchiveRequest:
    workspace = Workspace(layer.key, 1, "image:1", "sha256:1", ChainId("chain-1"))
    return ArchiveRequest(INSTALLATION, ref, sequence, NODE, workspace)


async def test_what_was_archived_comes_back(rig: Rig) -> None:
    source, target = rig.layer(1, FILES), rig.layer(2)
    await rig.archives.preflight(1000)
    archive = await rig.archives.export(request_for(source, 4), source)
    await rig.archives.verify(archive)
    await rig.archives.restore(archive, target)
    assert rig.files(target) == FILES == rig.files(source)


async def test_the_facts_say_what_and_whose_it_is(rig: Rig) -> None:
    source = rig.layer(1, FILES)
    archive = await rig.archives.export(request_for(source, 4), source)
    assert (archive.sequence, archive.kind, archive.namespace, archive.name, archive.uid) == (
        4,
        REF.kind,
        REF.namespace,
        REF.name,
        REF.uid,
    )
    assert (archive.snapshot_key, archive.image, archive.image_digest, archive.chain_id, archive.node_id) == (
        source.key,
        "image:1",
        "sha256:1",
        "chain-1",
        NODE,
    )
    assert archive.bytes > 0
    assert archive.entries >= len(FILES)
    assert not archive.empty
    assert not archive.retain


async def test_an_empty_layer_is_an_archive_that_says_so(rig: Rig) -> None:
    source = rig.layer(1)
    archive = await rig.archives.export(request_for(source, 4), source)
    assert archive.empty
    await rig.archives.verify(archive)


async def test_an_empty_layer_comes_back_empty(rig: Rig) -> None:
    """A clean-up puts away what wrote nothing, too."""
    source, target = rig.layer(1), rig.layer(2, {"half": "of something"})
    archive = await rig.archives.export(request_for(source, 4), source)
    await rig.archives.restore(archive, target)
    assert rig.files(target) == {}


async def test_an_export_that_is_repeated_is_the_same_archive(rig: Rig) -> None:
    source = rig.layer(1, FILES)
    archive = await rig.archives.export(request_for(source, 4), source)
    assert await rig.archives.export(request_for(source, 4), source) == archive


@pytest.mark.parametrize("name", ["save", "another file"])
async def test_what_was_written_since_needs_an_archive_of_another_sequence(rig: Rig, name: str) -> None:
    source, target = rig.layer(1, FILES), rig.layer(2)
    older = await rig.archives.export(request_for(source, 4), source)
    await rig.archives.compare(older, source)
    rig.write(source, name, "level 4")
    with pytest.raises(ArchiveOutdated):
        await rig.archives.compare(older, source)
    with pytest.raises(ArchiveOutdated):
        await rig.archives.export(request_for(source, 4), source)
    newer = await rig.archives.export(request_for(source, 5), source)
    await rig.archives.compare(newer, source)
    for archive, files in ((newer, {**FILES, name: "level 4"}), (older, FILES)):
        await rig.archives.verify(archive)
        await rig.archives.restore(archive, target)
        assert rig.files(target) == files


async def test_a_damaged_archive_is_left_to_people_when_its_export_is_repeated(rig: Rig) -> None:
    source = rig.layer(1, FILES)
    archive = await rig.archives.export(request_for(source, 4), source)
    rig.damage(4)
    for _ in range(2):
        with pytest.raises(ArchiveCorrupt):
            await rig.archives.export(request_for(source, 4), source)
        with pytest.raises(ArchiveCorrupt):
            await rig.archives.verify(archive)
    await rig.archives.verify(await rig.archives.export(request_for(source, 5), source))


async def test_a_restore_can_be_repeated_and_replaces_what_was_there(rig: Rig) -> None:
    source, target = rig.layer(1, FILES), rig.layer(2, {"half": "of something"})
    archive = await rig.archives.export(request_for(source, 4), source)
    for _ in range(2):
        await rig.archives.restore(archive, target)
        assert rig.files(target) == FILES


async def test_a_damaged_archive_is_corrupt_and_never_restored(rig: Rig) -> None:
    source, target = rig.layer(1, FILES), rig.layer(2)
    archive = await rig.archives.export(request_for(source, 4), source)
    rig.damage(4)
    for call in (rig.archives.verify(archive), rig.archives.restore(archive, target)):
        with pytest.raises(ArchiveCorrupt):
            await call
    assert rig.files(target) == {}
    assert list(await rig.archives.list(INSTALLATION, REF)) == [4]


async def test_an_archive_that_became_shorter_does_not_stand_for_its_layer(rig: Rig) -> None:
    source = rig.layer(1, FILES)
    archive = await rig.archives.export(request_for(source, 4), source)
    await rig.archives.compare(archive, source)
    rig.damage(4)
    with pytest.raises(ArchiveCorrupt):
        await rig.archives.compare(archive, source)


async def test_an_archive_of_another_hash_is_corrupt(rig: Rig) -> None:
    source, target = rig.layer(1, FILES), rig.layer(2)
    archive = await rig.archives.export(request_for(source, 4), source)
    with pytest.raises(ArchiveCorrupt):
        await rig.archives.restore(replace(archive, sha256="0" * 64), target)
    assert rig.files(target) == {}


async def test_a_deleted_archive_is_gone_and_deleting_it_again_is_nothing(rig: Rig) -> None:
    source = rig.layer(1, FILES)
    first = await rig.archives.export(request_for(source, 4), source)
    await rig.archives.export(request_for(source, 7), source)
    for _ in range(2):
        await rig.archives.delete(first)
        assert list(await rig.archives.list(INSTALLATION, REF)) == [7]
    for call in (rig.archives.verify(first), rig.archives.compare(first, source)):
        with pytest.raises(StoreError) as gone:
            await call
        assert gone.value.reason is Reason.ARCHIVE_NOT_REACHABLE


async def test_the_list_is_of_one_name_in_one_installation_whatever_the_uid(rig: Rig) -> None:
    source = rig.layer(1, FILES)
    later = replace(REF, uid=Uid("uid-2"))
    await rig.archives.export(request_for(source, 4), source)
    await rig.archives.export(request_for(source, 9, later), source)
    await rig.archives.export(request_for(source, 5, replace(REF, name="another")), source)
    await rig.archives.export(request_for(source, 6, replace(REF, kind=Kind.BOT)), source)
    assert list(await rig.archives.list(INSTALLATION, REF)) == [4, 9]
    assert list(await rig.archives.list(InstallationId("cluster-2"), REF)) == []


async def test_a_survey_goes_through_one_life_after_the_other_oldest_first_in_a_folder_each(rig: Rig) -> None:
    source, other = rig.layer(1, FILES), replace(REF, uid=Uid("uid-2"))
    for sequence, ref in ((10, REF), (11, other), (9, REF), (8, other)):
        await rig.archives.export(request_for(source, sequence, ref), source)
    found = [one async for one in rig.archives.survey(INSTALLATION)]
    told = [(one.facts.uid, one.facts.sequence) for one in found if one.facts is not None]
    assert told == [("uid-1", 9), ("uid-1", 10), ("uid-2", 8), ("uid-2", 11)]
    folders = [one.path.rpartition("/")[0] for one in found]
    assert folders == [folders[0], folders[0], folders[2], folders[2]]
    assert folders[0] != folders[2]


async def test_a_store_that_is_away_is_an_error_and_not_an_empty_store(rig: Rig) -> None:
    source, target = rig.layer(1, FILES), rig.layer(2)
    archive = await rig.archives.export(request_for(source, 4), source)
    rig.take_store_away()
    for call in (
        rig.archives.preflight(None),
        rig.archives.export(request_for(source, 5), source),
        rig.archives.verify(archive),
        rig.archives.compare(archive, source),
        rig.archives.restore(archive, target),
        rig.archives.delete(archive),
    ):
        with pytest.raises(StoreError):
            await call
    assert rig.files(source) == FILES
