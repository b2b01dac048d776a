"""Daemons are found again by more than their pid, die with what they are told, and say why when they do not start."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rig.processes import Daemon, DaemonError, ProcessIdentity, command_lines, recorded, wait_until

IGNORES_TERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); signal.pause()"


def daemon(directory: Path, code: str = "import signal; signal.pause()", **changes: object) -> Daemon:
    base = Daemon("sleeper", [sys.executable, "-c", code], directory, lambda: True, stop_seconds=0.5, ready_seconds=5)
    return replace(base, **changes)  # type: ignore[arg-type]


def start_and_wait(starting: Daemon) -> None:
    starting.start()
    starting.wait_ready()


def test_started_daemon_is_found_by_another_command_and_not_started_twice(tmp_path: Path) -> None:
    first, second = daemon(tmp_path), daemon(tmp_path)
    assert first.start() is True
    try:
        assert second.start() is False
        assert second.identity() == first.identity() is not None
    finally:
        second.stop()
    assert first.identity() is None
    assert recorded(tmp_path, "sleeper") is None


def test_recycled_pid_is_never_signalled(tmp_path: Path) -> None:
    stranger = daemon(tmp_path / "stranger")
    stranger.start()
    try:
        identity = stranger.identity()
        assert identity is not None
        mine = daemon(tmp_path / "mine")
        mine.run_directory.mkdir()
        mine.pid_file.write_text(
            json.dumps({"pid": identity.pid, "start_ticks": identity.start_ticks - 1, "boot_id": identity.boot_id})
        )
        assert mine.identity() is None
        mine.kill()
        mine.stop()
        assert stranger.identity() == identity
    finally:
        stranger.stop()


def test_pid_of_another_boot_is_not_ours() -> None:
    me = ProcessIdentity.of(os.getpid())
    assert me is not None
    assert me.is_alive()
    assert not replace(me, boot_id="00000000-0000-0000-0000-000000000000").is_alive()


def test_daemon_that_ignores_term_is_killed(tmp_path: Path) -> None:
    stubborn = daemon(tmp_path, IGNORES_TERM)
    stubborn.start()
    wait_until(lambda: "on" in stubborn.log.read_text(), "the daemon to run", seconds=10)
    stubborn.stop()
    assert all(IGNORES_TERM not in line.argv for line in command_lines())


def test_daemon_that_dies_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    broken = daemon(tmp_path, "import sys; sys.exit('port is taken')", ready=lambda: False)
    with pytest.raises(DaemonError, match="port is taken"):
        start_and_wait(broken)
    broken.stop()


def test_daemon_outlives_signals_to_the_callers_group(tmp_path: Path) -> None:
    running = daemon(tmp_path)
    running.start()
    try:
        identity = running.identity()
        assert identity is not None
        assert os.getsid(identity.pid) == identity.pid
    finally:
        running.kill()
    assert running.identity() is None


def test_kill_leaves_no_time_to_clean_up(tmp_path: Path) -> None:
    marker = tmp_path / "cleaned-up"
    code = (
        "import signal, sys, pathlib\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(marker)!r}).touch(), sys.exit()))\n"
        "print('on', flush=True)\n"
        "while True: signal.pause()\n"
    )
    polite = daemon(tmp_path, code, stop_signal=signal.SIGTERM, stop_seconds=10)
    polite.start()
    wait_until(lambda: "on" in polite.log.read_text(), "the daemon to run", seconds=10)
    polite.kill()
    assert not marker.exists()
    polite.start()
    wait_until(lambda: "on" in polite.log.read_text(), "the daemon to run again", seconds=10)
    polite.stop()
    assert marker.exists()


def test_killed_process_is_not_gone_before_its_last_thread_is(tmp_path: Path) -> None:
    code = (
        "import ctypes, platform, sys, threading\n"
        "threading.Thread(target=sys.stdin.read).start()\n"
        "ctypes.CDLL(None).syscall({'x86_64': 60, 'aarch64': 93}[platform.machine()], 0)  # exit(2) ends one thread\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    stat = Path(f"/proc/{process.pid}/stat")
    wait_until(lambda: stat.read_text().split()[2] == "Z", "the first thread has ended", seconds=10)
    identity = ProcessIdentity.of(process.pid)
    assert identity is not None
    assert identity.is_alive()
    process.communicate(timeout=10)
    assert not identity.is_alive()
