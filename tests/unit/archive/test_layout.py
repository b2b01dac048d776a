"""The store's folders: names cannot lead elsewhere, and files appear whole."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from tests.unit.archive.test_manifest import MANIFEST

from perdure.archive import layout
from perdure.archive.faults import Fault

PARTS = ("cluster", "default", "BotRuntime", "bot", "uid")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "-x", "a\n", ".hidden", "x" * 254, "é", "a\0b"])
def test_a_name_that_is_no_plain_component_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be the name"), layout.open_folder(tmp_path, (name,), make=True):
        pass
    assert list(tmp_path.iterdir()) == []


def test_folders_are_made_for_the_owner_only(tmp_path: Path) -> None:
    with layout.open_folder(tmp_path, PARTS, make=True):
        pass
    made = list(tmp_path.rglob("*"))
    assert len(made) == len(PARTS)
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o700}


def test_a_manifest_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with layout.open_folder(tmp_path, PARTS, make=True) as folder:
        assert layout.read_manifest(folder, 3) is None
        layout.write_manifest(folder, 3, MANIFEST)
        assert layout.read_manifest(folder, 3) == MANIFEST
        assert os.listdir(folder) == ["3.json"]
        assert layout.sequences_in(folder) == {3}


def test_one_process_at_a_time_works_in_a_folder(tmp_path: Path) -> None:
    with layout.open_folder(tmp_path, ()) as one, layout.open_folder(tmp_path, ()) as other:
        with layout.locked(one), pytest.raises(Fault, match="another process"), layout.locked(other):
            pytest.fail("both have the lock")
        with layout.locked(other):
            pass


def test_either_half_of_an_archive_is_listed_and_removed(tmp_path: Path) -> None:
    for name in ("1.json", "2.tar.zst", "3.json", "3.tar.zst", "4.tar.zst.partial", "notes.json"):
        (tmp_path / name).touch()
    with layout.open_folder(tmp_path, ()) as folder:
        assert layout.sequences_in(folder) == {1, 2, 3}
        for sequence in (1, 2, 3, 3):
            layout.remove(folder, sequence)
    assert {path.name for path in tmp_path.iterdir()} == {"4.tar.zst.partial", "notes.json"}


def test_empty_folders_go_and_others_stay(tmp_path: Path) -> None:
    with layout.open_folder(tmp_path, PARTS, make=True):
        pass
    (tmp_path / "cluster" / "default" / "keep").touch()
    for _ in range(2):
        layout.prune(tmp_path, PARTS)
        assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["cluster", "default", "keep"]


def test_the_sweep_of_a_store_takes_temporary_files_only(tmp_path: Path) -> None:
    with layout.open_folder(tmp_path, PARTS, make=True):
        pass
    folder = tmp_path.joinpath(*PARTS)
    for name in ("1.json", "1.tar.zst", "2.tar.zst.partial", "2.json.partial"):
        (folder / name).touch()
    (tmp_path / "probe-1.partial").touch()
    assert layout.sweep_store(tmp_path) == 3
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["1.json", "1.tar.zst"]
    assert layout.sweep_store(tmp_path) == 0


def test_what_a_file_system_keeps_in_a_store_is_not_looked_into(tmp_path: Path) -> None:
    for name in ("lost+found/#12", ".snapshot/hourly", "cluster/.snapshot"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.tar.zst.partial").touch()
    (tmp_path / "readme").touch()
    assert layout.folders(tmp_path, ()) == ["cluster"]
    assert layout.folders(tmp_path, ("cluster",)) == []
    assert layout.sweep_store(tmp_path) == 0
    assert len(list(tmp_path.rglob("*.partial"))) == 3
