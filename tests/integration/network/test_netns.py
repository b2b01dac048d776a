"""Named network namespaces on this machine's kernel: leftovers of a reboot, of a killed agent, and of others."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.api.names import Kind, NamespaceUid, RuntimeRef, Uid
from perdure.api.runtime import RuntimeSpec
from perdure.network import netns
from perdure.network.netns import NameState
from perdure.network.none import LoopbackSandbox
from perdure.plan.certainty import Absent, Unknown
from perdure.reconcile.ports.errors import SandboxFailed
from perdure.reconcile.ports.sandbox import SandboxPlan

pytestmark = pytest.mark.root

REF = RuntimeRef(Kind.BOT, "agents", "hermes", Uid("a-uid"), NamespaceUid("a-namespace-uid"))


@pytest.fixture
def run_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="perdure-test-", dir="/run"))
    yield path
    for left in (path / "netns").glob("*"):
        netns.remove(left)
    shutil.rmtree(path)


@pytest.fixture
def name(run_dir: Path) -> Path:
    return run_dir / "netns" / REF.uid


@pytest.fixture
def plain(name: Path) -> Path:
    """A file under the name with nothing mounted on it."""
    name.parent.mkdir()
    name.touch()
    return name


def test_a_namespace_has_loopback_up_and_nothing_else(name: Path) -> None:
    netns.create(name)
    shown = subprocess.run(
        ["nsenter", f"--net={name}", "ip", "-o", "link"], capture_output=True, text=True, check=True, timeout=20
    ).stdout.splitlines()
    (loopback,) = (line for line in shown if "LOOPBACK" in line)
    assert "UP" in loopback.split("<")[1]
    assert not any("veth" in line or "eth0" in line for line in shown)


def test_the_maker_stays_in_its_own_namespace(name: Path) -> None:
    before = Path("/proc/self/ns/net").stat().st_ino
    threads = threading.active_count()
    netns.create(name)
    assert Path("/proc/self/ns/net").stat().st_ino == before
    assert Path("/proc/thread-self/ns/net").stat().st_ino == before
    assert threading.active_count() == threads
    assert {name for _, name in socket.if_nameindex()} >= {"lo"}


async def test_a_plain_file_left_by_a_reboot_is_absent_and_mounted_again(run_dir: Path, plain: Path) -> None:
    sandbox = LoopbackSandbox(run_dir)
    assert netns.state(plain) is NameState.PLAIN
    assert await sandbox.observe(REF) == Absent()
    assert list(await sandbox.inventory()) == [REF.uid]
    await sandbox.create(SandboxPlan(REF, RuntimeSpec(image="any")))
    assert netns.state(plain) is NameState.MOUNTED


async def test_a_plain_file_can_be_removed(run_dir: Path, plain: Path) -> None:
    await LoopbackSandbox(run_dir).remove(REF)
    assert netns.state(plain) is NameState.NOTHING


def test_a_name_that_was_mounted_twice_is_removed_whole(name: Path) -> None:
    netns.create(name)
    subprocess.run(["mount", "--bind", name, name], check=True, timeout=20)
    netns.remove(name)
    assert netns.state(name) is NameState.NOTHING


def test_a_namespace_of_another_kind_does_not_count(plain: Path) -> None:
    subprocess.run(["mount", "--bind", "/proc/self/ns/uts", plain], check=True, timeout=20)
    try:
        assert netns.state(plain) is NameState.PLAIN
    finally:
        subprocess.run(["umount", plain], check=True, timeout=20)


@pytest.fixture
def link(name: Path) -> Iterator[Path]:
    """A symbolic link under the name, which somebody else put there."""
    name.parent.mkdir()
    name.symlink_to("/proc/self/ns/net")
    yield name
    name.unlink()


async def test_a_name_that_cannot_be_looked_at_is_unknown(run_dir: Path, link: Path) -> None:
    sandbox = LoopbackSandbox(run_dir)
    with pytest.raises(OSError) as caught:
        netns.state(link)
    assert caught.value.errno == errno.ELOOP
    assert isinstance(await sandbox.observe(REF), Unknown)
    with pytest.raises(SandboxFailed, match="BotRuntime/agents/hermes"):
        await sandbox.create(SandboxPlan(REF, RuntimeSpec(image="any")))


async def test_a_folder_that_cannot_be_made_is_said(run_dir: Path) -> None:
    (run_dir / "netns").touch()
    sandbox = LoopbackSandbox(run_dir)
    with pytest.raises(SandboxFailed, match="BotRuntime/agents/hermes"):
        await sandbox.create(SandboxPlan(REF, RuntimeSpec(image="any")))
    assert isinstance(await sandbox.observe(REF), Unknown)
    (run_dir / "netns").unlink()


ASK = "import sys; from pathlib import Path; from perdure.network import netns; print(netns.is_inhabited(Path(sys.argv[1])))"


def is_inhabited_as_seen(name: Path, *launcher: str) -> bool:
    """By another process."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    answer = subprocess.run(
        [*launcher, sys.executable, "-c", ASK, str(name)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=environment,
    )
    return {"True": True, "False": False}[answer.stdout.strip()]


@pytest.mark.parametrize("launcher", [(), ("setpriv", "--bounding-set=-sys_ptrace,-sys_nice")], ids=["all", "less"])
def test_a_process_in_a_namespace_is_seen_by_whoever_may_do_as_much_and_by_whoever_may_do_less(
    name: Path, launcher: tuple[str, ...]
) -> None:
    netns.create(name)
    assert not is_inhabited_as_seen(name, *launcher)
    command = ["nsenter", f"--net={name}", "sh", "-c", "echo && exec sleep 600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"\n"
        assert is_inhabited_as_seen(name, *launcher)
        process.kill()
    assert not is_inhabited_as_seen(name, *launcher)


def test_nobody_lives_in_what_is_no_namespace(plain: Path, run_dir: Path) -> None:
    assert not netns.is_inhabited(plain)
    assert not netns.is_inhabited(run_dir / "absent")
