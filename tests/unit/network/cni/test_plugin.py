"""One execution of a plugin that misbehaves: it is understood, bounded in time and in size, and leaves no process."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.network.cni.plugins import script

from perdure.network.cni.errors import Command, Execution, PluginError, PluginFault
from perdure.network.cni.plugin import MAX_OUTPUT_BYTES, PATH, Runner

EXECUTION = Execution("lab", Command.ADD, "net", "id-1", "/run/netns/x", "eth0", "A=1;B=2")


async def run(folder: Path, body: str, document: bytes = b"{}", seconds: float = 20.0) -> bytes:
    script(folder, "lab", body)
    return await Runner((folder,), seconds).run(EXECUTION, document)


async def failure(folder: Path, body: str, seconds: float = 20.0) -> PluginError:
    with pytest.raises(PluginError) as caught:
        await run(folder, body, seconds=seconds)
    assert all(word in str(caught.value) for word in ("lab", "ADD", "id-1", "net"))
    return caught.value


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def gone(file: Path) -> None:
    """Return once no process has the pid that `file` tells of."""
    await asyncio.to_thread(until, lambda: not _alive(int(file.read_text())))


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _running(word: str) -> list[bytes]:
    """The command lines of processes that hold `word`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if word.encode() in line:
            found.append(line)
    return found


async def appears(file: Path) -> None:
    """Return once `file` has a whole line."""
    await asyncio.to_thread(until, lambda: file.exists() and file.read_text().endswith("\n"))


async def test_a_plugin_gets_its_parameters_and_nothing_else_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERDURE_SECRET", "hidden")
    given = (await run(tmp_path, "cat /proc/$$/environ; exit 0")).decode().strip("\0").split("\0")
    assert sorted(given) == sorted(
        [
            f"PATH={PATH}",
            "CNI_COMMAND=ADD",
            "CNI_CONTAINERID=id-1",
            "CNI_NETNS=/run/netns/x",
            "CNI_IFNAME=eth0",
            "CNI_ARGS=A=1;B=2",
            f"CNI_PATH={tmp_path}",
        ]
    )


async def test_a_document_larger_than_a_pipe_is_read_by_the_plugin_or_not(tmp_path: Path) -> None:
    document = b'"' + b"x" * 300_000 + b'"'
    assert await run(tmp_path, "cat", document) == document
    assert await run(tmp_path, "echo ignored", document) == b"ignored"


async def test_an_error_object_is_taken_apart(tmp_path: Path) -> None:
    error = await failure(tmp_path, """echo '{"code": 11, "msg": "busy", "details": "come back"}'; exit 1""")
    assert (error.fault, error.code, error.text) == (PluginFault.REFUSED, 11, "busy; come back")


@pytest.mark.parametrize("written", ["panic: oh no", "[]", "{}", '{"code": "x"}', r"\377\376"])
async def test_anything_else_with_a_failure_is_garbage_and_its_complaint_is_kept(tmp_path: Path, written: str) -> None:
    error = await failure(tmp_path, f"printf '{written}'; echo why >&2; exit 3")
    assert error.fault is PluginFault.GARBAGE
    assert "why" in error.text


async def test_a_failure_without_a_word_is_a_crash_and_standard_error_tells(tmp_path: Path) -> None:
    error = await failure(tmp_path, "echo segfault >&2; exit 2")
    assert error.fault is PluginFault.CRASHED
    assert "segfault" in error.text
    assert "status 2" in error.text


async def test_a_plugin_that_is_killed_half_way_is_a_crash(tmp_path: Path) -> None:
    error = await failure(tmp_path, """printf '{"code": 1'; kill -KILL $$""")
    assert error.fault is PluginFault.CRASHED
    assert "SIGKILL" in error.text


async def test_megabytes_of_output_are_cut_off_and_their_writer_is_killed(tmp_path: Path) -> None:
    error = await failure(tmp_path, f"echo $$ >{tmp_path}/pid; exec yes")
    assert error.fault is PluginFault.GARBAGE
    assert str(MAX_OUTPUT_BYTES) in error.text
    await gone(tmp_path / "pid")


async def test_megabytes_of_complaints_neither_block_nor_fill_the_message(tmp_path: Path) -> None:
    error = await failure(tmp_path, "head -c 5000000 /dev/zero | tr '\\0' x >&2; echo the end >&2; exit 1")
    assert error.text.endswith("the end")
    assert len(error.text) < 3000


async def test_a_plugin_that_hangs_is_killed_with_a_child_that_ignores_signals_and_holds_its_output(
    tmp_path: Path,
) -> None:
    body = f"""(trap '' TERM INT HUP; echo $$ >/dev/null; exec sleep 1000) &
echo $! >{tmp_path}/child
echo $$ >{tmp_path}/self
wait"""
    begun = time.monotonic()
    error = await failure(tmp_path, body, seconds=1.0)
    assert error.fault is PluginFault.TIMED_OUT
    assert time.monotonic() - begun < 5.0
    await gone(tmp_path / "child")
    await gone(tmp_path / "self")


async def test_a_plugin_that_answers_is_not_waited_for_until_its_child_lets_go_of_the_output(tmp_path: Path) -> None:
    begun = time.monotonic()
    assert await run(tmp_path, f"sleep 1000 & echo $! >{tmp_path}/child; echo answer") == b"answer"
    assert time.monotonic() - begun < 10.0
    os.kill(int((tmp_path / "child").read_text()), 9)


async def test_cancelling_kills_the_plugin_and_its_children(tmp_path: Path) -> None:
    task = asyncio.create_task(run(tmp_path, f"sleep 1000 & echo $! >{tmp_path}/child; echo $$ >{tmp_path}/self; wait"))
    await appears(tmp_path / "self")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(tmp_path / "child")
    await gone(tmp_path / "self")


async def test_cancelling_at_any_moment_of_the_start_leaves_nothing(tmp_path: Path) -> None:
    for turns in range(12):
        task = asyncio.create_task(run(tmp_path, "sleep 1000"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert _running(str(tmp_path)) == []


async def test_descriptors_are_given_back(tmp_path: Path) -> None:
    await run(tmp_path, "echo {}")
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await run(tmp_path, "echo {}")
        await failure(tmp_path, "exit 1")
    assert len(os.listdir("/proc/self/fd")) <= len(before)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("absent", PluginFault.MISSING),
        ("../lab", PluginFault.MISSING),
        ("folder", PluginFault.MISSING),
        ("plain", PluginFault.NOT_EXECUTABLE),
        ("no-format", PluginFault.NOT_EXECUTABLE),
        ("no-interpreter", PluginFault.NOT_STARTED),
    ],
)
async def test_a_plugin_that_cannot_be_run_is_said_to_be_so(tmp_path: Path, name: str, fault: PluginFault) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").write_text("#!/bin/sh\n")
    script(tmp_path, "no-interpreter", "")
    (tmp_path / "no-interpreter").write_text("#!/nowhere/sh\n")
    script(tmp_path, "no-format", "")
    (tmp_path / "no-format").write_bytes(b"\x7fELF")
    with pytest.raises(PluginError) as caught:
        await Runner((tmp_path,), 20.0).run(Execution(name, Command.ADD, "net"), b"")
    assert caught.value.fault is fault


async def test_folders_are_searched_in_order(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    script(tmp_path / "two", "lab", "echo two")
    runner = Runner((tmp_path / "absent", tmp_path / "one", tmp_path / "two"), 20.0)
    assert await runner.run(EXECUTION, b"") == b"two"
    script(tmp_path / "one", "lab", "echo one")
    assert await runner.run(EXECUTION, b"") == b"one"


async def test_a_launcher_stands_before_the_plugin(tmp_path: Path) -> None:
    script(tmp_path, "lab", "echo $LAUNCHED")
    assert await Runner((tmp_path,), 20.0, ("env", "LAUNCHED=yes")).run(EXECUTION, b"") == b"yes"


async def test_a_launcher_can_end_the_plugin_with_this_process(tmp_path: Path) -> None:
    script(tmp_path, "lab", f"echo $$ >{tmp_path}/self; exec sleep 1000")
    program = f"""
import asyncio, pathlib
from perdure.network.cni.errors import Command, Execution
from perdure.network.cni.plugin import Runner
runner = Runner((pathlib.Path({str(tmp_path)!r}),), 60.0, ("setpriv", "--pdeathsig", "KILL", "--"))
asyncio.run(runner.run(Execution("lab", Command.ADD, "net"), b""))
"""
    paths = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.environ["PATH"]}
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, env=paths)
    await appears(tmp_path / "self")
    process.kill()
    await process.wait()
    await gone(tmp_path / "self")
