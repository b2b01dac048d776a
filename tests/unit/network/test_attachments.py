"""What a node remembers of its attachments: whole or not at all, through restarts of its agent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.property.worlds import REF

from perdure.api.names import Uid
from perdure.api.network import NetworkPeer, NetworkPolicy
from perdure.network.attachments import Attached, Attachments, Damage
from perdure.plan.world import HostPort

ONE = Attached(
    ref=REF,
    network="agents",
    addresses=("10.88.0.2", "fd88::2"),
    port="veth0",
    mac="02:00:00:00:00:01",
    ports=(HostPort("game", "UDP", 7777, 7000),),
    policy=NetworkPolicy(allow_from=(NetworkPeer(namespace="others"),)),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "attached"


def loaded(folder: Path) -> Attachments:
    attachments = Attachments(folder)
    attachments.load()
    return attachments


def test_what_was_put_is_there_for_the_next_agent(folder: Path) -> None:
    first = loaded(folder)
    assert (first.all(), first.get(REF.uid)) == ((), None)
    first.put(ONE)
    second = loaded(folder)
    assert second.get(REF.uid) == ONE
    assert second.all() == (ONE,)
    assert second.uids() == {REF.uid}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_was_removed_stays_away_and_may_be_removed_again(folder: Path) -> None:
    attachments = loaded(folder)
    attachments.put(ONE)
    for _ in range(2):
        attachments.remove(REF.uid)
    assert attachments.all() == loaded(folder).all() == ()
    assert list(folder.iterdir()) == []


def test_a_new_attachment_replaces_the_old_one_and_has_no_damage(folder: Path) -> None:
    attachments = loaded(folder)
    attachments.put(ONE)
    attachments.damages[REF.uid] = Damage("eth0 is down", interface=True)
    changed = msgspec.structs.replace(ONE, ports=())
    attachments.put(changed)
    assert attachments.damages == {}
    assert loaded(folder).all() == (changed,)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"network": "agents"}', b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_as_good_as_none_and_hides_no_other(folder: Path, content: bytes) -> None:
    loaded(folder).put(ONE)
    (folder / "another").write_bytes(content)
    assert loaded(folder).all() == (ONE,)


def test_what_a_killed_agent_was_writing_is_no_attachment(folder: Path) -> None:
    loaded(folder).put(ONE)
    (folder / ".uid-2").write_bytes(
        msgspec.json.encode(msgspec.structs.replace(ONE, ref=replace(REF, uid=Uid("uid-2"))))
    )
    assert loaded(folder).uids() == {REF.uid}


def test_a_disk_that_takes_nothing_changes_nothing(folder: Path) -> None:
    attachments = loaded(folder)
    attachments.put(ONE)
    attachments.damages[REF.uid] = Damage("eth0 is down", interface=True)
    (folder / f".{REF.uid}").mkdir()
    with pytest.raises(OSError):
        attachments.put(msgspec.structs.replace(ONE, ports=()))
    assert attachments.all() == loaded(folder).all() == (ONE,)
    assert REF.uid in attachments.damages
