"""Files read from layers as overlay would show them, whoever made the layers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from perdure.engine.merged_tree import UnreadableFile, read_file

LIMIT = 1000


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    """Uppermost first."""
    made = [tmp_path / name for name in ("upper", "middle", "base")]
    for layer in made:
        (layer / "etc").mkdir(parents=True)
    return made


def read(layers: list[Path], path: str = "etc/passwd") -> bytes | None:
    return read_file(layers, path, limit=LIMIT)


def test_the_uppermost_layer_counts(layers: list[Path]) -> None:
    (layers[2] / "etc/passwd").write_bytes(b"base")
    assert read(layers) == b"base"
    (layers[0] / "etc/passwd").write_bytes(b"upper")
    assert read(layers) == b"upper"


def test_what_is_nowhere_is_none(layers: list[Path]) -> None:
    assert read(layers) is None
    assert read(layers, "no/such/folder") is None
    (layers[1] / "etc/passwd").write_bytes(b"")
    assert read(layers, "etc/passwd/below") is None


def test_links_stay_inside(layers: list[Path], tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    (layers[0] / "etc/passwd").symlink_to(f"../../../../../..{tmp_path}/outside")
    assert read(layers) is None
    (layers[0] / "etc/passwd").unlink()
    (layers[0] / "etc/passwd").symlink_to(f"{tmp_path}/outside")
    assert read(layers) is None
    (layers[2] / "store").mkdir()
    (layers[2] / "store/passwd").write_bytes(b"store")
    (layers[0] / "etc/passwd").unlink()
    (layers[0] / "etc/passwd").symlink_to("/../store/./passwd")
    assert read(layers) == b"store"


def test_a_link_to_a_folder_is_followed_across_layers(layers: list[Path]) -> None:
    (layers[1] / "etc").rmdir()
    (layers[0] / "etc").rmdir()
    (layers[2] / "etc").rmdir()
    (layers[0] / "etc").symlink_to("usr/etc")
    (layers[2] / "usr/etc").mkdir(parents=True)
    (layers[2] / "usr/etc/passwd").write_bytes(b"far")
    assert read(layers) == b"far"


def test_links_in_a_circle_are_given_up(layers: list[Path]) -> None:
    (layers[0] / "etc/passwd").symlink_to("passwd")
    with pytest.raises(UnreadableFile, match="links"):
        read(layers)


@pytest.mark.parametrize("what", ["fifo", "folder", "large"])
def test_what_is_no_plain_file_of_bearable_size_is_refused(layers: list[Path], what: str) -> None:
    path = layers[0] / "etc/passwd"
    match what:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "large":
            path.write_bytes(b"x" * (LIMIT + 1))
    with pytest.raises(UnreadableFile, match="etc/passwd"):
        read(layers)


@pytest.mark.root
def test_a_deletion_hides_what_is_below(layers: list[Path]) -> None:
    (layers[2] / "etc/passwd").write_bytes(b"base")
    os.mknod(layers[1] / "etc/passwd", 0o20000, os.makedev(0, 0))
    assert read(layers) is None
    (layers[0] / "etc/passwd").write_bytes(b"again")
    assert read(layers) == b"again"


@pytest.mark.root
def test_an_opaque_folder_hides_what_is_below(layers: list[Path]) -> None:
    (layers[2] / "etc/passwd").write_bytes(b"base")
    os.setxattr(layers[1] / "etc", "trusted.overlay.opaque", b"y")
    assert read(layers) is None
