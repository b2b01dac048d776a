"""What a store holds is told by its manifests, and only where nothing about it is odd."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tests.unit.archive.test_manifest import MANIFEST

from perdure.archive import inventory, layout
from perdure.archive.inventory import Found
from perdure.archive.manifest import MAX_MANIFEST, Manifest, encode_manifest

OWN = MANIFEST.contents.source.installation
SOURCE = msgspec.structs.replace(MANIFEST.contents.source, kind="BotRuntime")
PARTS = (OWN, SOURCE.namespace, SOURCE.kind, SOURCE.name, SOURCE.uid)


def manifest(sequence: int, **source: str) -> Manifest:
    told = msgspec.structs.replace(SOURCE, sequence=sequence, **source)
    return msgspec.structs.replace(MANIFEST, contents=msgspec.structs.replace(MANIFEST.contents, source=told))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of one life, with a good archive in it."""
    with layout.open_folder(tmp_path, PARTS, make=True):
        pass
    own = tmp_path.joinpath(*PARTS)
    put(own, 3)
    return own


def put(folder: Path, sequence: int, **source: str) -> None:
    (folder / f"{sequence}.tar.zst").write_bytes(b"an archive")
    (folder / f"{sequence}.json").write_bytes(encode_manifest(manifest(sequence, **source)))


def survey(root: Path, installation: str = OWN) -> dict[str, Found]:
    return {found.path: found for found in inventory.survey(root, installation)}


def path_of(sequence: int) -> str:
    return "/".join((*PARTS, f"{sequence}.tar.zst"))


def test_a_good_archive_is_told_as_its_manifest_says(folder: Path, tmp_path: Path) -> None:
    (found,) = survey(tmp_path).values()
    assert (found.path, found.problem) == (path_of(3), "")
    assert found.brief is not None
    assert (found.brief.sha256, found.brief.contents.source) == (MANIFEST.sha256, manifest(3).contents.source)
    assert found.brief.contents.entries == MANIFEST.contents.entries


def test_another_installations_archives_are_not_looked_at(folder: Path, tmp_path: Path) -> None:
    assert survey(tmp_path, "another-cluster") == {}


def damage(folder: Path) -> None:
    (folder / "4.json").write_text("{}")


def of_the_future(folder: Path) -> None:
    (folder / "4.json").write_bytes(encode_manifest(msgspec.structs.replace(manifest(4), format_version=99)))


def link_the_archive(folder: Path) -> None:
    (folder / "4.tar.zst").unlink()
    (folder / "4.tar.zst").symlink_to(folder / "3.tar.zst")


def link_the_manifest(folder: Path) -> None:
    (folder / "4.json").unlink()
    (folder / "4.json").symlink_to("/etc/passwd")


def make_it_a_pipe(folder: Path) -> None:
    (folder / "4.json").unlink()
    os.mkfifo(folder / "4.json")


def make_it_huge(folder: Path) -> None:
    os.truncate(folder / "4.json", MAX_MANIFEST + 1)


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda folder: (folder / "4.json").unlink(), "never finished"),
        (lambda folder: (folder / "4.tar.zst").unlink(), "without its archive"),
        (damage, "missing required field"),
        (of_the_future, "the format 99"),
        (link_the_archive, "no plain file"),
        (link_the_manifest, "no plain file"),
        (make_it_a_pipe, "no plain file"),
        (make_it_huge, "at most"),
        (lambda folder: put(folder, 4, installation="another-cluster"), "not where it lies"),
        (lambda folder: put(folder, 4, namespace="elsewhere"), "not where it lies"),
        (lambda folder: put(folder, 4, uid="another-life"), "not where it lies"),
        (lambda folder: (folder / "3.json").rename(folder / "4.json"), "not where it lies"),
    ],
)
def test_what_is_odd_is_named_and_the_rest_is_told(
    harm: Callable[[Path], object], why: str, folder: Path, tmp_path: Path
) -> None:
    put(folder, 4)
    put(folder, 5)
    harm(folder)
    found = survey(tmp_path)
    assert found[path_of(4)].brief is None
    assert why in found[path_of(4)].problem
    assert found[path_of(5)].brief is not None


def test_folders_that_are_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    (folder.parent / "linked").symlink_to(folder)
    (folder.parent / "stray").write_text("what is this?")
    found = survey(tmp_path)
    assert {Path(path).name for path, one in found.items() if one.problem} == {"linked", "stray"}
    assert len([one for one in found.values() if one.brief is not None]) == 1


def test_a_kind_that_is_none_is_odd(tmp_path: Path) -> None:
    parts = (OWN, SOURCE.namespace, "Pod", SOURCE.name, SOURCE.uid)
    with layout.open_folder(tmp_path, parts, make=True):
        pass
    put(tmp_path.joinpath(*parts), 3, kind="Pod")
    (found,) = survey(tmp_path).values()
    assert "no kind of runtime" in found.problem


def test_a_store_that_is_away_is_not_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        survey(tmp_path / "not-mounted")
