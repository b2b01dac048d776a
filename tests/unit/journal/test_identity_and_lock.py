"""The node's id is made once; one agent per state folder and per engine."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.journal.errors import JournalFailed
from perdure.journal.identity import FILE_NAME, node_id
from perdure.journal.lock import NodeLock, NodeLocked


def test_the_id_is_made_once_and_differs_from_another_nodes(tmp_path: Path) -> None:
    first = node_id(tmp_path / "a")
    assert node_id(tmp_path / "a") == first
    assert node_id(tmp_path / "b") != first
    assert len(first) == 32
    assert (tmp_path / "a" / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_no_random_bytes_is_an_error_and_leaves_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(count: int) -> str:
        raise NotImplementedError("no random source")

    with monkeypatch.context() as patched:
        patched.setattr(secrets, "token_hex", fail)
        with pytest.raises(JournalFailed, match="no random source"):
            node_id(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\n", b"not an id\n", b"\xff" * 32])
def test_a_damaged_id_is_never_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(JournalFailed, match=FILE_NAME):
        node_id(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == content


def test_a_half_written_id_of_a_killed_process_is_replaced(tmp_path: Path) -> None:
    (tmp_path / f"{FILE_NAME}.new").write_bytes(b"ab")
    assert len(node_id(tmp_path)) == 32


def test_a_second_agent_on_the_same_state_folder_is_told_who_is_there(tmp_path: Path) -> None:
    with (
        NodeLock(tmp_path, Path("/engine"), "perdure"),
        pytest.raises(NodeLocked, match=r"state folder .*\(process \d+\)"),
    ):
        NodeLock(tmp_path, Path("/engine"), "another").acquire()
    with NodeLock(tmp_path, Path("/engine"), "perdure"):
        pass


def test_agents_of_one_engine_exclude_each_other_where_the_lock_folder_is_shared(tmp_path: Path) -> None:
    locks = tmp_path / "locks"
    with NodeLock(tmp_path / "a", Path("/engine"), "perdure", lock_dir=locks):
        with pytest.raises(NodeLocked, match="engine at /engine, namespace perdure"):
            NodeLock(tmp_path / "b", Path("/engine"), "perdure", lock_dir=locks).acquire()
        with NodeLock(tmp_path / "b", Path("/engine"), "other", lock_dir=locks):
            pass


def test_a_refused_lock_holds_nothing(tmp_path: Path) -> None:
    locks = tmp_path / "locks"
    with NodeLock(tmp_path / "a", Path("/engine"), "perdure", lock_dir=locks):
        with pytest.raises(NodeLocked):
            NodeLock(tmp_path / "b", Path("/engine"), "perdure", lock_dir=locks).acquire()
        with NodeLock(tmp_path / "b", Path("/other"), "perdure", lock_dir=locks):
            pass


def test_a_killed_agent_leaves_no_lock(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from perdure.journal.lock import NodeLock\n"
        "NodeLock(Path(sys.argv[1]), Path('/engine'), 'perdure').acquire(); print('held', flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(NodeLocked, match=f"process {process.pid}"):
            NodeLock(tmp_path, Path("/engine"), "perdure").acquire()
        process.send_signal(signal.SIGKILL)
    with NodeLock(tmp_path, Path("/engine"), "perdure"):
        pass
