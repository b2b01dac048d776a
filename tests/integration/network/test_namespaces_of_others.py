"""Namespaces that processes live in: given their names again, seen to be inhabited, and inspected from outside."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from perdure.api.names import Uid
from perdure.network import netns
from perdure.network.inspection import Expected, damaged
from perdure.network.netns import NameState

pytestmark = pytest.mark.root

ONE, TWO = Uid("uid-1"), Uid("uid-2")
ADDRESS4, ADDRESS6 = "10.88.0.2", "fd88::2"


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="perdure-test-", dir="/run"))
    yield path
    for left in netns.names(path):
        netns.remove(path / left)
    shutil.rmtree(path)


@contextmanager
def living_in(*how: str) -> Iterator[int]:
    """A process that `how` starts in a namespace; its pid once it is there."""
    with subprocess.Popen([*how, "sh", "-c", "echo there; exec sleep 600"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        try:
            yield process.pid
        finally:
            process.kill()


def inode(path: Path | str) -> int:
    return os.stat(path).st_ino


def ip(name: Path, *arguments: str) -> None:
    subprocess.run(["nsenter", f"--net={name}", "ip", *arguments], check=True, timeout=20)


# ---------------------------------------------------------------------------------------------- names


def test_a_process_gives_its_namespace_the_name_that_was_lost(folder: Path) -> None:
    name = folder / ONE
    netns.create(name)
    before = inode(name)
    with living_in("nsenter", f"--net={name}") as pid:
        netns.remove(name)
        assert netns.state(name) is NameState.NOTHING
        for _ in range(2):
            netns.adopt(name, pid)
            assert netns.state(name) is NameState.MOUNTED
            assert inode(name) == before == inode(f"/proc/{pid}/ns/net")
    assert inode(name) == before


def test_a_name_that_has_a_namespace_stays_with_it(folder: Path) -> None:
    netns.create(folder / ONE)
    before = inode(folder / ONE)
    with living_in("unshare", "--net") as pid:
        netns.adopt(folder / ONE, pid)
    assert inode(folder / ONE) == before


def test_the_namespace_of_a_process_that_has_ended_cannot_be_adopted_and_counts_as_absent(folder: Path) -> None:
    with living_in("unshare", "--net") as pid:
        pass
    with pytest.raises(OSError, match=f"process {pid}"):
        netns.adopt(folder / ONE, pid)
    assert netns.state(folder / ONE) is NameState.PLAIN


def test_every_name_is_listed_and_no_folder_has_none(folder: Path) -> None:
    assert netns.names(folder / "nowhere") == []
    netns.create(folder / TWO)
    (folder / ONE).touch()
    assert netns.names(folder) == [ONE, TWO]


def test_a_namespace_is_inhabited_while_a_process_lives_in_it(folder: Path) -> None:
    name = folder / ONE
    netns.create(name)
    netns.create(folder / TWO)
    assert not netns.is_inhabited(name)
    with living_in("nsenter", f"--net={name}"):
        assert netns.is_inhabited(name)
        assert not netns.is_inhabited(folder / TWO)
    assert not netns.is_inhabited(name)


def test_nobody_lives_in_a_name_that_is_nothing_or_a_plain_file(folder: Path) -> None:
    assert not netns.is_inhabited(folder / ONE)
    (folder / ONE).touch()
    assert not netns.is_inhabited(folder / ONE)


# ---------------------------------------------------------------------------------------------- inspection


@pytest.fixture
def attached(folder: Path) -> Path:
    """A namespace with an interface that has an address of each family."""
    name = folder / ONE
    netns.create(name)
    ip(name, "link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
    ip(name, "addr", "add", f"{ADDRESS4}/24", "dev", "eth0")
    ip(name, "addr", "add", f"{ADDRESS6}/64", "dev", "eth0", "nodad")
    ip(name, "link", "set", "peer0", "up")
    ip(name, "link", "set", "eth0", "up")
    return name


@pytest.mark.parametrize("address", [ADDRESS4, ADDRESS6])
@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (None, None),
        (("link", "del", "eth0"), "interface eth0 is gone"),
        (("link", "set", "eth0", "down"), "interface eth0 is down"),
        (("addr", "flush", "dev", "eth0"), "interface eth0 has lost address {address}"),
    ],
    ids=["whole", "gone", "down", "without addresses"],
)
def test_what_is_wrong_with_an_interface_is_seen_from_outside(
    attached: Path, address: str, change: tuple[str, ...] | None, wrong: str | None
) -> None:
    if change is not None:
        ip(attached, *change)
    found = damaged([Expected(ONE, attached, "eth0", (address,))])
    assert found == ({} if wrong is None else {ONE: wrong.format(address=address)})


@pytest.mark.parametrize(("lost", "kept"), [(ADDRESS4, ADDRESS6), (ADDRESS6, ADDRESS4)])
def test_each_family_is_looked_at_by_itself(attached: Path, lost: str, kept: str) -> None:
    ip(attached, "addr", "del", f"{lost}/{24 if lost == ADDRESS4 else 64}", "dev", "eth0")
    expected = [Expected(ONE, attached, "eth0", (kept, lost)), Expected(TWO, attached, "eth0", (kept,))]
    assert damaged(expected) == {ONE: f"interface eth0 has lost address {lost}"}


@pytest.mark.parametrize(("version", "gateway"), [(4, "10.88.0.1"), (6, "fd88::1")])
def test_a_way_out_that_was_lost_is_seen(attached: Path, version: int, gateway: str) -> None:
    expected = [Expected(ONE, attached, "eth0", (ADDRESS4, ADDRESS6), (version,))]
    assert damaged(expected) == {ONE: f"interface eth0 has lost the default route of IPv{version}"}
    ip(attached, f"-{version}", "route", "add", "default", "via", gateway)
    assert damaged(expected) == {}


def test_another_address_than_the_expected_one_does_not_do(attached: Path) -> None:
    for other in ("10.88.0.20", "fd88::20"):
        expected = [Expected(ONE, attached, "eth0", (other,))]
        assert damaged(expected) == {ONE: f"interface eth0 has lost address {other}"}


def test_namespaces_are_looked_at_one_after_another_and_the_looker_stays_at_home(attached: Path, folder: Path) -> None:
    netns.create(folder / TWO)
    (folder / "plain").touch()
    here, threads = inode("/proc/thread-self/ns/net"), threading.active_count()
    expected = [
        Expected(TWO, folder / TWO, "eth0", (ADDRESS4,)),
        Expected(Uid("plain"), folder / "plain", "eth0", (ADDRESS4,)),
        Expected(Uid("nothing"), folder / "nothing", "eth0", (ADDRESS4,)),
        Expected(ONE, attached, "eth0", (ADDRESS4,)),
    ]
    assert damaged(expected) == {TWO: "interface eth0 is gone"}
    assert inode("/proc/thread-self/ns/net") == here
    assert threading.active_count() == threads
