"""A whole environment, brought up, used, put down and brought up again by the command that people use."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rig.environment import Environment, RefusedError
from rig.leaks import Footprint, other_environments, settled_leaks
from rig.paths import CHECKOUT, OWNER_FILE, environment_id

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
SECOND_START_SECONDS = 15


@pytest.fixture
def directory() -> Iterator[Path]:
    """A folder for an environment of the test's own; whatever the test did, the environment is down afterwards."""
    path = Path(tempfile.mkdtemp(prefix="perdure-rig-test-"))
    yield path
    Environment(path).down()
    shutil.rmtree(path, ignore_errors=True)


def hack_env(verb: str, directory: Path, *options: str, expect: int = 0) -> str:
    """Run hack/env as a person does; returns its stdout."""
    command = [str(CHECKOUT / "hack" / "env"), verb, "--dir", str(directory), *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == expect, result.stderr
    return result.stdout


def in_shell(exports: str, script: str) -> str:
    """Run a script in a shell that has evaluated what ``up`` printed."""
    shell = ["bash", "-euc", f"{exports}\n{script}"]
    result = subprocess.run(shell, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def leaks_of(environment: Environment, before: Footprint) -> list[str]:
    """What one environment left; other tests are at work on the machine at the same time."""
    folders = (environment.directory, environment.run_directory)
    names = (str(environment.directory), environment_id(environment.directory))
    return settled_leaks(before, own=environment.directory, folders=folders, concerning=names)


RUN_CONTAINER = """
ctr -n perdure run -d --null-io --runc-root "$PERDURE_RUNC_ROOT" --cgroup "$PERDURE_CGROUP_PARENT/c" \
    perdure.dev/samples/busybox:2 c
ctr -n perdure tasks exec --exec-id e c cat /etc/perdure-sample-release
"""


def test_environment_serves_keeps_data_and_leaves_nothing(directory: Path) -> None:
    before = Footprint.take()
    exports = hack_env("up", directory)
    assert in_shell(exports, "kubectl create namespace kept") == "namespace/kept created\n"
    assert in_shell(exports, 'psql "$PERDURE_DATABASE_URL" -c "CREATE TABLE kept (n int)"') == "CREATE TABLE\n"
    assert in_shell(exports, "ctr -n perdure images ls -q").split() == [
        "perdure.dev/samples/busybox:1",
        "perdure.dev/samples/busybox:2",
    ]
    assert in_shell(exports, RUN_CONTAINER) == "2\n"
    assert "containerd" in hack_env("status", directory)

    began = time.monotonic()
    assert hack_env("up", directory) == exports
    hack_env("down", directory, "--keep-data")
    hack_env("status", directory, expect=3)
    again = hack_env("up", directory)
    assert time.monotonic() - began < 2 * SECOND_START_SECONDS
    assert in_shell(again, "kubectl get namespace kept -o name") == "namespace/kept\n"
    in_shell(again, 'psql "$PERDURE_DATABASE_URL" -c "TABLE kept"')
    assert in_shell(again, "ctr -n perdure tasks ls -q") == ""
    assert in_shell(again, "ctr -n perdure containers ls -q") == "c\n"

    in_shell(again, "ctr -n perdure tasks start -d c 2>/dev/null || ctr -n perdure containers rm c")
    environment = Environment(directory)
    run_directory = environment.run_directory
    hack_env("down", directory)
    assert not directory.exists()
    assert not run_directory.exists()
    assert leaks_of(environment, before) == []


def test_killed_shim_and_engine_leave_nothing_after_down(directory: Path) -> None:
    before = Footprint.take()
    environment = Environment(directory)
    environment.up()
    in_shell(hack_env("up", directory), RUN_CONTAINER)
    engine = environment.engine
    (shim,) = engine.shims()
    (address,) = engine.state.glob("*/perdure/c/address")
    socket = Path(address.read_text().removeprefix("unix://"))
    assert socket.is_socket()
    engine.daemon.kill()
    os.kill(shim.pid, 9)
    environment.down()
    assert leaks_of(environment, before) == []
    assert not socket.exists()


def test_two_environments_do_not_know_of_each_other(directory: Path) -> None:
    other = directory / "inner"
    first, second = Environment(directory / "outer"), Environment(other)
    first.up()
    try:
        second.up()
        try:
            ours, theirs = first.variables(), second.variables()
            assert all(ours[name] != theirs[name] for name in ours)
            assert first.control_plane.url != second.control_plane.url
            assert [found.directory for found in other_environments(first.directory)].count(str(other)) == 1
        finally:
            second.down()
        assert first.engine.answers()
        assert first.database.answers()
    finally:
        first.down()


def test_folder_of_somebody_else_is_neither_used_nor_removed(directory: Path) -> None:
    precious = directory / "precious"
    precious.write_text("mine")
    with pytest.raises(RefusedError, match="holds other things"):
        Environment(directory).up()
    with pytest.raises(RefusedError, match="was not made by"):
        Environment(directory).down()
    assert precious.read_text() == "mine"
    assert not (directory / OWNER_FILE).exists()
    precious.unlink()
    (directory / OWNER_FILE).touch()
