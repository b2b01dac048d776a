"""Ending commands among hostile processes: real ones, listed in a file as a cgroup lists them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from perdure.engine import descendants
from perdure.engine.descendants import ENVIRONMENT_BYTES, PIECE_BYTES, kill_with_descendants

MARK = "PERDURE_PROBE=probe-1"
SLEEP = "import time; print(flush=True); time.sleep(600)"
HUGE_ENVIRONMENT = """
import ctypes, mmap, struct
size = 4 << 30
area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
stat = open("/proc/self/stat").read().rpartition(")")[2].split()
code, end_code, stack = (int(stat[n]) for n in (23, 24, 25))
data, end_data, brk, arg, end_arg = (int(stat[n]) for n in (42, 43, 44, 45, 46))
fields = (code, end_code, data, end_data, brk, brk, stack, arg, end_arg, start, start + size)
wanted = ctypes.create_string_buffer(struct.pack("=11QQII", *fields, 0, 0, 0xFFFFFFFF))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(35, 14, ctypes.byref(wanted), ctypes.c_ulong(len(wanted) - 1), 0):
    raise OSError(ctypes.get_errno(), "prctl")
"""
"""Unmapped pages are zeros: 4 GiB of environment for nothing (prctl(2), PR_SET_MM with PR_SET_MM_MAP)."""

Spawn = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts a process in a session of its own, and waits until its program has begun."""
    started: list[subprocess.Popen[bytes]] = []

    def run(program: str = SLEEP, **env: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", program], env=env, stdout=subprocess.PIPE, start_new_session=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n", "it has begun"
        return process

    yield run
    for process in started:
        process.kill()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def listed(tmp_path: Path) -> Callable[..., Path]:
    def write(*processes: subprocess.Popen[bytes]) -> Path:
        procs = tmp_path / "cgroup.procs"
        procs.write_text("".join(f"{process.pid}\n" for process in processes))
        return procs

    return write


def was_killed(process: subprocess.Popen[bytes]) -> bool:
    return process.wait(10) == -9


@pytest.mark.parametrize(
    "before",
    [{}, {"A": "a" * (PIECE_BYTES - 30)}, {f"V{n}": "v" * 100_000 for n in range(15)}],
    ids=["first", "across two pieces", "after 1.5 MB"],
)
def test_the_mark_is_found_wherever_it_is(spawn: Spawn, listed: Callable[..., Path], before: dict[str, str]) -> None:
    command, stray, other = spawn(), spawn(**before, PERDURE_PROBE="probe-1"), spawn(**before, PERDURE_PROBE="probe-12")
    assert kill_with_descendants(listed(command, other, stray), command.pid, MARK)
    assert was_killed(command)
    assert was_killed(stray)
    assert other.poll() is None


def test_an_environment_of_gibs_costs_little_memory_and_time_and_hides_nobody(
    spawn: Spawn, listed: Callable[..., Path]
) -> None:
    huge = [spawn(HUGE_ENVIRONMENT + SLEEP, PERDURE_PROBE="probe-1") for _ in range(4)]
    with Path(f"/proc/{huge[0].pid}/environ").open("rb") as environ:
        assert len(environ.read(2 * ENVIRONMENT_BYTES)) == 2 * ENVIRONMENT_BYTES, "the kernel shows what it claims"
    command, stray = spawn(), spawn(PERDURE_PROBE="probe-1")
    tracemalloc.start()
    began = time.monotonic()
    try:
        assert kill_with_descendants(listed(*huge, command, stray), command.pid, MARK)
        assert tracemalloc.get_traced_memory()[1] < 16 * PIECE_BYTES
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < 5
    assert was_killed(command)
    assert was_killed(stray)
    assert [process.poll() for process in huge] == [None] * 4, "nothing tells them from the main process's children"


def test_what_cannot_be_looked_at_in_time_counts_as_left(
    spawn: Spawn, listed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descendants, "DEADLINE_SECONDS", -1.0)
    command, other = spawn(), spawn(A="x")
    assert not kill_with_descendants(listed(command, other), command.pid, MARK)
    assert was_killed(command), "kin needs no look"


def test_a_cgroup_that_is_gone_has_nobody_left(tmp_path: Path) -> None:
    assert kill_with_descendants(tmp_path / "cgroup.procs", os.getpid(), MARK)
