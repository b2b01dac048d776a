"""Records of attachments: what libcni writes, and what a crash or a full disk makes of them."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest

from perdure.network.cni.cache import Cache, Damaged, Record
from perdure.network.cni.documents import raw
from perdure.network.cni.errors import CacheUnusable

RECORD = Record(
    network_name="lab",
    container_id="id-1",
    ifname="eth0",
    netns="/run/netns/x",
    network=b'{"name":"lab"}',
    cni_args=(("K", "v"),),
    capabilities={"mac": raw("02:00:00:00:00:01")},
    result=b'{"cniVersion":"1.0.0"}',
    complete=True,
)


def file_of(folder: Path) -> Path:
    return folder / "results" / "lab-id-1-eth0"


def test_a_complete_record_is_what_libcni_writes(tmp_path: Path) -> None:
    Cache(tmp_path).write(RECORD)
    assert json.loads(file_of(tmp_path).read_bytes()) == {
        "kind": "cniCacheV1",
        "containerId": "id-1",
        "config": base64.b64encode(b'{"name":"lab"}').decode(),
        "ifName": "eth0",
        "networkName": "lab",
        "netns": "/run/netns/x",
        "cniArgs": [["K", "v"]],
        "capabilityArgs": {"mac": "02:00:00:00:00:01"},
        "result": {"cniVersion": "1.0.0"},
    }
    assert file_of(tmp_path).stat().st_mode & 0o777 == 0o600


def test_a_record_of_libcni_is_read(tmp_path: Path) -> None:
    file_of(tmp_path).parent.mkdir()
    written = {"kind": "cniCacheV1", "containerId": "id-1", "config": "e30=", "ifName": "eth0", "networkName": "lab"}
    file_of(tmp_path).write_text(json.dumps({**written, "result": {"ips": []}}))
    found = Cache(tmp_path).read("lab", "id-1", "eth0")
    assert isinstance(found, Record)
    assert (found.network, found.netns, found.cni_args, found.complete) == (b"{}", "", (), True)


@pytest.mark.parametrize(
    "record",
    [
        RECORD,
        replace(RECORD, complete=False),
        replace(RECORD, result=None, complete=False),
        replace(RECORD, cni_args=(), capabilities={}, netns=""),
    ],
)
def test_what_is_written_is_read(tmp_path: Path, record: Record) -> None:
    cache = Cache(tmp_path)
    cache.write(record)
    assert cache.read("lab", "id-1", "eth0") == record
    assert cache.records() == (record,)
    cache.remove("lab", "id-1", "eth0")
    cache.remove("lab", "id-1", "eth0")
    assert cache.read("lab", "id-1", "eth0") is None
    assert cache.records() == ()


def test_a_file_cut_off_anywhere_is_damaged_and_nothing_worse(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.write(RECORD)
    whole = file_of(tmp_path).read_bytes()
    for length in range(len(whole)):
        file_of(tmp_path).write_bytes(whole[:length])
        assert isinstance(cache.read("lab", "id-1", "eth0"), Damaged)


@pytest.mark.parametrize("data", [b"\0" * 100, b"[]", b'{"kind":"other"}', b'{"kind":"cniCacheV1","config":"%"}'])
def test_other_contents_are_damaged(tmp_path: Path, data: bytes) -> None:
    file_of(tmp_path).parent.mkdir()
    file_of(tmp_path).write_bytes(data)
    assert isinstance(Cache(tmp_path).records()[0], Damaged)


@pytest.mark.parametrize("member", ["config", "result", "kind"])
def test_a_damaged_member_damages_the_record(tmp_path: Path, member: str) -> None:
    cache = Cache(tmp_path)
    cache.write(RECORD)
    document = json.loads(file_of(tmp_path).read_bytes())
    file_of(tmp_path).write_text(json.dumps({**document, member: "%%%"}))
    assert isinstance(cache.read("lab", "id-1", "eth0"), Damaged)


def test_an_unfinished_write_is_nobodys_record(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.write(RECORD)
    (tmp_path / "results" / ".tmp123").write_text("{")
    assert cache.records() == (RECORD,)


def test_a_folder_that_cannot_be_written_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    for operation in (lambda: Cache(tmp_path).write(RECORD), Cache(tmp_path).records):
        with pytest.raises(CacheUnusable, match="results"):
            operation()
