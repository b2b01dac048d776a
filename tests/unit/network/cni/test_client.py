"""Whole networks through plugins that write down what they are asked: order, documents, records, and what a failure leaves."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
from tests.unit.network.cni.plugins import (
    RESULT,
    calls,
    inputs,
    led_in,
    namespaces,
    network,
    port_keeper,
    recorder,
    script,
)

from perdure.network.cni.attachment import Attachment, Bandwidth, Capabilities, CapabilityDns, PortMapping
from perdure.network.cni.cache import Damaged, Record
from perdure.network.cni.client import CniClient, ValidAttachment
from perdure.network.cni.errors import CacheUnusable, InvalidAttachment, NotCached, PluginError, PluginFault

ONE = Attachment("one", "/ns")
ASKED = Capabilities(
    port_mappings=(PortMapping(7001, 80, "tcp", "192.0.2.1"),),
    bandwidth=Bandwidth(ingress_rate=8, ingress_burst=9),
    dns=CapabilityDns(servers=("192.0.2.53",)),
    ips=("10.1.0.9/16",),
    mac="02:00:00:00:00:01",
)
OTHER = RESULT.replace("10.1.0.5", "10.1.0.6")


@pytest.fixture
def client(tmp_path: Path) -> CniClient:
    for name, answer in (("first", RESULT), ("second", RESULT), ("third", OTHER)):
        recorder(tmp_path, name, answer)
    return CniClient([tmp_path], tmp_path / "cache", 20.0)


async def record(client: CniClient) -> Record:
    (found,) = await client.cached()
    assert isinstance(found, Record)
    return found


def turn(tmp_path: Path, commands: list[tuple[str, str]]) -> None:
    assert calls(tmp_path) == commands
    (tmp_path / "calls").unlink()


async def test_plugins_run_in_order_and_backwards_with_the_result_before(tmp_path: Path, client: CniClient) -> None:
    lab = network("first", "second", "third")
    result = await client.add(lab, ONE)
    assert [given.get("prevResult") for given in inputs(tmp_path)] == [None, json.loads(RESULT), json.loads(RESULT)]
    assert all(given["name"] == "lab" and given["cniVersion"] == "1.0.0" for given in inputs(tmp_path))
    turn(tmp_path, [("ADD", "first"), ("ADD", "second"), ("ADD", "third")])
    assert json.loads(result.document) == json.loads(OTHER)
    assert await client.check(lab.name, ONE)
    assert all(given["prevResult"] == json.loads(OTHER) for given in inputs(tmp_path))
    turn(tmp_path, [("CHECK", "first"), ("CHECK", "second"), ("CHECK", "third")])
    await client.delete(lab, ONE)
    assert all(given["prevResult"] == json.loads(OTHER) for given in inputs(tmp_path))
    turn(tmp_path, [("DEL", "third"), ("DEL", "second"), ("DEL", "first")])
    assert await client.cached() == ()


async def test_a_plugin_is_given_the_capabilities_it_has_and_its_own_members_unaltered(
    tmp_path: Path, client: CniClient
) -> None:
    own = {"type": "second", "own": {"a": [1.50, None]}, "capabilities": {"portMappings": True, "mac": False}}
    everything = dict.fromkeys(("portMappings", "bandwidth", "dns", "ips", "mac"), True)
    lab = network("first", own, {"type": "third", "capabilities": everything})
    await client.add(lab, Attachment("one", "/ns", capabilities=ASKED))
    first, second, third = inputs(tmp_path)
    mappings = [{"hostPort": 7001, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"}]
    assert "runtimeConfig" not in first
    assert second["runtimeConfig"] == {"portMappings": mappings}
    assert second["own"] == own["own"]
    assert "capabilities" not in second
    assert third["runtimeConfig"] == {
        "portMappings": mappings,
        "bandwidth": {"ingressRate": 8, "ingressBurst": 9},
        "dns": {"servers": ["192.0.2.53"], "searches": [], "options": []},
        "ips": ["10.1.0.9/16"],
        "mac": "02:00:00:00:00:01",
    }


async def test_a_delete_uses_the_configuration_and_arguments_of_the_add(tmp_path: Path, client: CniClient) -> None:
    old = network({"type": "first", "era": "old", "capabilities": {"mac": True}})
    await client.add(old, Attachment("one", "/ns", capabilities=ASKED))
    (tmp_path / "calls").unlink()
    await client.delete(network({"type": "second", "era": "new"}), Attachment("one", ""))
    assert calls(tmp_path) == [("DEL", "first")]
    assert namespaces(tmp_path) == [""]
    (given,) = inputs(tmp_path)
    assert given["era"] == "old"
    assert given["runtimeConfig"] == {"mac": "02:00:00:00:00:01"}


async def test_a_record_alone_is_enough_for_a_delete(tmp_path: Path, client: CniClient) -> None:
    await client.add(network("first", "second"), ONE)
    (tmp_path / "calls").unlink()
    await client.delete_cached(await record(client))
    turn(tmp_path, [("DEL", "second"), ("DEL", "first")])
    assert await client.cached() == ()


async def test_without_a_record_a_delete_asks_with_what_is_configured(tmp_path: Path, client: CniClient) -> None:
    await client.delete(network("first", "second"), ONE)
    assert all("prevResult" not in given for given in inputs(tmp_path))
    turn(tmp_path, [("DEL", "second"), ("DEL", "first")])


async def test_version_0_3_1_has_no_previous_result_for_a_delete_and_no_check(
    tmp_path: Path, client: CniClient
) -> None:
    lab = network("first", version="0.3.1")
    await client.add(lab, ONE)
    assert not await client.check(lab.name, ONE)
    (tmp_path / "calls").unlink()
    await client.delete(lab, ONE)
    assert "prevResult" not in inputs(tmp_path)[0]
    turn(tmp_path, [("DEL", "first")])


async def test_a_bridge_that_was_changed_says_nothing_of_the_attachment_and_keeps_no_plugin_from_being_asked(
    tmp_path: Path, client: CniClient
) -> None:
    lab = network("first", "second")
    await client.add(lab, ONE)
    for name, text in (
        ("first", "Bridge interface br0 configured Promisc Mode false doesn't match current state: true "),
        ("second", "could not check ipv4 dnat: chain CNI-DN-1 not found"),
    ):
        refusal = json.dumps({"code": 999, "msg": text})
        recorder(
            tmp_path,
            name,
            more=f"[ $CNI_COMMAND = CHECK ] && [ ! -e $calls-{name} ] && echo {shlex.quote(refusal)} && exit 1",
        )
    with pytest.raises(PluginError, match="could not check ipv4 dnat"):
        await client.check(lab.name, ONE)
    (tmp_path / "calls-second").touch()
    assert await client.check(lab.name, ONE)
    assert calls(tmp_path)[2:] == [("CHECK", "first"), ("CHECK", "second")] * 2


async def test_check_is_left_out_where_the_configuration_says_so(tmp_path: Path, client: CniClient) -> None:
    lab = network("first", disableCheck=True)
    await client.add(lab, ONE)
    assert not await client.check(lab.name, ONE)
    turn(tmp_path, [("ADD", "first")])


async def test_an_add_that_fails_half_way_leaves_the_record_that_its_delete_needs(
    tmp_path: Path, client: CniClient
) -> None:
    script(tmp_path, "second", """[ $CNI_COMMAND = ADD ] && { echo '{"code": 7, "msg": "no"}'; exit 1; }; exit 0""")
    lab = network("first", "second")
    with pytest.raises(PluginError, match="no"):
        await client.add(lab, ONE)
    found = await record(client)
    assert not found.complete
    assert found.result is not None
    with pytest.raises(NotCached):
        await client.check(lab.name, ONE)
    (tmp_path / "calls").unlink()
    await client.delete(lab, ONE)
    assert inputs(tmp_path)[0]["prevResult"] == json.loads(RESULT)
    assert await client.cached() == ()


async def test_an_add_cancelled_in_its_first_plugin_leaves_a_record(tmp_path: Path, client: CniClient) -> None:
    begun = tmp_path / "begun"
    os.mkfifo(begun)
    script(tmp_path, "first", f"echo >{begun}; exec sleep 1000")
    adding = asyncio.create_task(client.add(network("first"), ONE))
    await asyncio.to_thread(begun.read_bytes)
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    found = await record(client)
    assert (found.result, found.complete) == (None, False)


async def test_a_delete_asks_all_plugins_and_keeps_the_record_until_all_succeed(
    tmp_path: Path, client: CniClient
) -> None:
    lab = network("first", "second", "third")
    await client.add(lab, ONE)
    (tmp_path / "calls").unlink()
    recorder(tmp_path, "third", more="""echo '{"code": 100, "msg": "third"}'; exit 1""")
    recorder(tmp_path, "second", more="""echo '{"code": 100, "msg": "second"}'; exit 1""")
    with pytest.raises(PluginError, match="third"):
        await client.delete(lab, ONE)
    turn(tmp_path, [("DEL", "third"), ("DEL", "second"), ("DEL", "first")])
    assert (await record(client)).complete
    recorder(tmp_path, "third")
    recorder(tmp_path, "second")
    await client.delete(lab, ONE)
    assert await client.cached() == ()


async def test_a_delete_takes_an_unknown_container_as_done(tmp_path: Path, client: CniClient) -> None:
    script(tmp_path, "first", """echo '{"code": 3, "msg": "never heard of it"}'; exit 1""")
    await client.delete(network("first"), ONE)


async def test_a_delete_passes_over_a_plugin_that_cannot_have_run(tmp_path: Path, client: CniClient) -> None:
    refuse = """echo '{"code": 1, "msg": "incompatible CNI versions"}'; exit 1"""
    script(tmp_path, "old", refuse)
    lab = network("first", "absent", "old")
    with pytest.raises(PluginError):
        await client.add(lab, ONE)
    await client.delete(lab, ONE)
    assert calls(tmp_path) == [("ADD", "first"), ("DEL", "first")]
    assert await client.cached() == ()


async def test_a_delete_waits_for_a_plugin_that_has_run_and_was_uninstalled(tmp_path: Path, client: CniClient) -> None:
    lab = network("first", "second")
    await client.add(lab, ONE)
    (tmp_path / "second").unlink()
    with pytest.raises(PluginError, match="failed to find plugin second"):
        await client.delete(lab, ONE)
    assert (await record(client)).complete
    recorder(tmp_path, "second", RESULT)
    await client.delete(lab, ONE)
    assert await client.cached() == ()


async def test_a_damaged_record_is_told_and_a_delete_removes_it(tmp_path: Path, client: CniClient) -> None:
    lab = network("first")
    await client.add(lab, ONE)
    (tmp_path / "cache" / "results" / "lab-one-eth0").write_bytes(b'{"kind":"cni')
    assert [type(one) for one in await client.cached()] == [Damaged]
    with pytest.raises(NotCached, match="damaged"):
        await client.check(lab.name, ONE)
    with pytest.raises(NotCached, match="damaged"):
        await client.repair(lab.name, ONE)
    await client.gc(lab, [])
    await client.delete(lab, ONE)
    assert await client.cached() == ()


async def test_a_repair_leaves_the_plugin_of_the_interface_alone(tmp_path: Path, client: CniClient) -> None:
    lab = network("first", "second", "third")
    await client.add(lab, ONE)
    (tmp_path / "calls").unlink()
    await client.repair(lab.name, ONE)
    assert all(given["prevResult"] == json.loads(OTHER) for given in inputs(tmp_path)[:2])
    turn(tmp_path, [("DEL", "third"), ("DEL", "second"), ("ADD", "second"), ("ADD", "third")])
    assert (await record(client)).complete


async def test_a_repair_deletes_twice_where_that_helps(tmp_path: Path, client: CniClient) -> None:
    half = f"""[ $CNI_COMMAND = DEL ] && [ ! -e {tmp_path}/once ] && {{
touch {tmp_path}/once; echo '{{"code": 999, "msg": "Chain CNI-1 does not exist"}}'; exit 1; }}"""
    recorder(tmp_path, "second", more=half)
    lab = network("first", "second")
    await client.add(lab, ONE)
    (tmp_path / "calls").unlink()
    await client.repair(lab.name, ONE)
    turn(tmp_path, [("DEL", "second"), ("DEL", "second"), ("ADD", "second")])


PORTED = network("first", {"type": "ports", "capabilities": {"portMappings": True}})


def published(*numbers: int) -> Attachment:
    mappings = tuple(PortMapping(number, 80, "tcp") for number in numbers)
    return Attachment("one", "/ns", capabilities=Capabilities(port_mappings=mappings))


def asked_ports(given: dict[str, Any]) -> list[int]:
    return [mapping["hostPort"] for mapping in given.get("runtimeConfig", {}).get("portMappings", [])]


@pytest.mark.parametrize("wanted", [(7002,), (7001, 7002), (7002, 7003), ()])
async def test_a_repair_takes_back_what_was_asked_for_and_asks_for_what_is_wanted(
    tmp_path: Path, client: CniClient, wanted: tuple[int, ...]
) -> None:
    recorder(tmp_path, "ports", RESULT)
    await client.add(PORTED, published(7001))
    (tmp_path / "calls").unlink()
    await client.repair(PORTED.name, published(*wanted))
    assert [asked_ports(given) for given in inputs(tmp_path)] == [[7001], list(wanted)]
    turn(tmp_path, [("DEL", "ports"), ("ADD", "ports")])
    await client.delete(PORTED, Attachment("one", ""))
    assert [asked_ports(given) for given in inputs(tmp_path)] == [list(wanted), []]


@pytest.mark.parametrize("following", [(7001, 7002), (7003,), ()])
@pytest.mark.parametrize("command", ["DEL", "ADD"])
async def test_a_repair_that_was_cut_off_is_finished_by_the_next_one_or_by_a_delete(
    tmp_path: Path, client: CniClient, command: str, following: tuple[int, ...]
) -> None:
    port_keeper(tmp_path, "ports")
    await client.add(PORTED, published(7001, 7002))
    (tmp_path / f"stop-{command}").touch()
    repairing = asyncio.create_task(client.repair(PORTED.name, published(7003, 7004)))
    await asyncio.to_thread((tmp_path / "begun").read_bytes)
    assert led_in(tmp_path) in ({7002}, {7003}), "half of it is done"
    repairing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await repairing
    (tmp_path / f"stop-{command}").unlink()
    if following:
        await client.repair(PORTED.name, published(*following))
    else:
        await client.delete(PORTED, Attachment("one", ""))
    assert led_in(tmp_path) == set(following)


async def test_what_a_repair_could_not_take_back_is_taken_back_by_the_next_one(
    tmp_path: Path, client: CniClient
) -> None:
    port_keeper(tmp_path, "ports")
    await client.add(PORTED, published(7001, 7002))
    (tmp_path / "fail-DEL").touch()
    for wanted in (7003, 7004):
        with pytest.raises(PluginError, match="busy"):
            await client.repair(PORTED.name, published(7002, wanted))
    assert led_in(tmp_path) == {7001, 7002, 7003, 7004}, "what is wanted works all the same"
    (tmp_path / "fail-DEL").unlink()
    await client.repair(PORTED.name, published(7004))
    assert led_in(tmp_path) == {7004}


@pytest.mark.parametrize("answer", ["", "null", "ok", "[]", '{"ips": 3}', '{"cniVersion": "0.2.0", "ip4": {}}'])
async def test_an_answer_that_is_no_result_is_garbage(tmp_path: Path, client: CniClient, answer: str) -> None:
    recorder(tmp_path, "first", answer)
    with pytest.raises(PluginError) as caught:
        await client.add(network("first", "second"), ONE)
    assert caught.value.fault is PluginFault.GARBAGE
    assert calls(tmp_path) == [("ADD", "first")]


async def test_collecting_detaches_what_is_not_wanted_of_this_network_alone(tmp_path: Path, client: CniClient) -> None:
    lab = network("first", version="1.1.0")
    for name in ("kept", "stale"):
        await client.add(lab, Attachment(name, "/ns"))
    await client.add(network("second", name="other"), ONE)
    (tmp_path / "calls").unlink()
    await client.gc(lab, [ValidAttachment("kept", "eth0")])
    wanted = [{"containerID": "kept", "ifname": "eth0"}]
    assert inputs(tmp_path)[1]["cni.dev/valid-attachments"] == wanted
    turn(tmp_path, [("DEL", "first"), ("GC", "first")])
    left = {one.container_id for one in await client.cached() if isinstance(one, Record)}
    assert left == {"kept", "one"}


async def test_collecting_is_left_out_where_the_configuration_says_so(tmp_path: Path, client: CniClient) -> None:
    lab = network("first", version="1.1.0", disableGC=True)
    await client.add(lab, ONE)
    await client.gc(lab, [])
    turn(tmp_path, [("ADD", "first")])


async def test_status_is_asked_from_1_1_0_on(tmp_path: Path, client: CniClient) -> None:
    await client.status(network("first"))
    assert calls(tmp_path) == []
    await client.status(network("first", "second", version="1.1.0"))
    turn(tmp_path, [("STATUS", "first"), ("STATUS", "second")])
    script(tmp_path, "first", """echo '{"code": 50, "msg": "not ready"}'; exit 1""")
    with pytest.raises(PluginError, match="not ready"):
        await client.status(network("first", version="1.1.0"))


async def test_versions_are_read_and_garbage_is_not(tmp_path: Path, client: CniClient) -> None:
    script(tmp_path, "first", """echo '{"cniVersion": "1.1.0", "supportedVersions": ["0.4.0", "1.0.0"]}'""")
    assert await client.version("first") == ("0.4.0", "1.0.0")
    script(tmp_path, "first", "echo {}")
    with pytest.raises(PluginError, match="version"):
        await client.version("first")


@pytest.mark.parametrize(
    "attachment",
    [
        Attachment("", "/ns"),
        Attachment("a/b", "/ns"),
        Attachment(".hidden", "/ns"),
        Attachment("one", "/ns", ifname=""),
        Attachment("one", "/ns", ifname="sixteen-letters-"),
        Attachment("one", "/ns", ifname="a b"),
        Attachment("one", "/ns", ifname=".."),
        Attachment("one", "/n\0s"),
        Attachment("one", "/ns", cni_args=(("K", "v;X=y"),)),
    ],
)
async def test_what_the_specification_does_not_allow_is_refused_before_anything_is_done(
    tmp_path: Path, client: CniClient, attachment: Attachment
) -> None:
    for operation in (client.add, client.delete):
        with pytest.raises(InvalidAttachment):
            await operation(network("first"), attachment)
    for by_record in (client.check, client.repair, client.configured):
        with pytest.raises(InvalidAttachment):
            await by_record("lab", attachment)
    assert calls(tmp_path) == []


async def test_nothing_is_attached_that_cannot_be_recorded(tmp_path: Path, client: CniClient) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(CacheUnusable):
        await client.add(network("first"), ONE)
    assert calls(tmp_path) == []
