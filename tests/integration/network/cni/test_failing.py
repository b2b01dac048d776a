"""What the reference plugins say when a node is not as it should be, and that what helps against it does help."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from tests.integration.network.cni.lab import NODE_ADDRESS, Lab

from perdure.network.cni.attachment import Attachment, Capabilities, PortMapping
from perdure.network.cni.client import CniClient
from perdure.network.cni.configuration import Network
from perdure.network.cni.error_classes import Action, Classified, ErrorClass
from perdure.network.cni.errors import CniError, PluginError
from perdure.network.cni.results import Result, addresses
from perdure.network.cni.retries import classify

pytestmark = pytest.mark.root

PUBLISHED = Capabilities(port_mappings=(PortMapping(7001, 80, "tcp"),))


async def add_fails(client: CniClient, network: Network, attachment: Attachment) -> Classified:
    with pytest.raises(CniError) as caught:
        await client.add(network, attachment)
    return classify(caught.value)


async def delete_twice_at_most(client: CniClient, network: Network, attachment: Attachment) -> None:
    try:
        await client.delete(network, attachment)
    except PluginError as error:
        assert classify(error).action is Action.DELETE_AGAIN  # noqa: PT017 - most DELs succeed at once
        await client.delete(network, attachment)


async def add_to_some_bridge(lab: Lab, client: CniClient, network: Network, attachment: Attachment) -> Result:
    """An ADD, and what helps where an earlier one was killed before the bridge had an address of its own."""
    try:
        return await client.add(network, attachment)
    except PluginError as error:
        assert classify(error).action is Action.REPAIR_BRIDGE  # noqa: PT017 - most bridges are well
    lab.on_node("ip", "link", "set", "lab0", "address", "0a:00:00:00:00:01")
    await delete_twice_at_most(client, network, attachment)
    return await client.add(network, attachment)


async def test_a_second_add_is_told_apart_and_a_delete_before_it_helps(lab: Lab) -> None:
    client, network, attachment = lab.client(), lab.whole_network(), lab.attachment("one", PUBLISHED)
    await client.add(network, attachment)
    failed = await add_fails(client, network, attachment)
    assert (failed.kind, failed.action) == (ErrorClass.ALREADY_ATTACHED, Action.DELETE_THEN_ADD)
    await delete_twice_at_most(client, network, attachment)
    result = await client.add(network, attachment)
    assert lab.leased() == {str(address) for address in addresses(result, "eth0")}


async def test_an_address_left_by_a_lost_namespace_is_told_apart_and_a_delete_helps(lab: Lab) -> None:
    client, network, attachment = lab.client(), lab.network(lab.bridge()), lab.attachment("one")
    await client.add(network, attachment)
    lab.lose_netns(attachment)
    attachment = lab.attachment("one")
    failed = await add_fails(client, network, attachment)
    assert (failed.kind, failed.action) == (ErrorClass.DUPLICATE_ALLOCATION, Action.DELETE_THEN_ADD)
    await client.delete(network, attachment)
    await client.add(network, attachment)
    assert len(lab.leased()) == 1


async def test_an_exhausted_pool_is_told_apart_and_costs_nobody_else_an_address(lab: Lab) -> None:
    client, network = lab.client(), lab.network(lab.bridge("10.77.0.0/30"))
    first, second = lab.attachment("one"), lab.attachment("two")
    await client.add(network, first)
    failed = await add_fails(client, network, second)
    assert (failed.kind, failed.action) == (ErrorClass.POOL_EXHAUSTED, Action.SWEEP_THEN_BACK_OFF)
    await client.delete(network, second)
    assert await client.check(network.name, first)
    await client.delete(network, first)
    await client.add(network, second)


async def test_a_lost_namespace_is_told_apart(lab: Lab) -> None:
    client, network, attachment = lab.client(), lab.network(lab.bridge()), lab.attachment("one")
    lab.lose_netns(attachment)
    assert (await add_fails(client, network, attachment)).kind is ErrorClass.NETNS_LOST
    lab.leave_plain_file(attachment)
    assert (await add_fails(client, network, attachment)).kind is ErrorClass.NETNS_LOST
    assert lab.leased() == set()


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"bridge": "up0"}, ErrorClass.NOT_A_BRIDGE),
        ({"type": "macvlan", "master": "absent0"}, ErrorClass.MASTER_MISSING),
        ({"type": "absent"}, ErrorClass.PLUGIN_MISSING),
        ({"ipam": {"type": "absent"}}, ErrorClass.PLUGIN_MISSING),
        ({"ipam": {"type": "host-local", "ranges": []}}, ErrorClass.INVALID_CONFIGURATION),
        ({"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/31"}]]}}, ErrorClass.INVALID_CONFIGURATION),
        (
            {"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/16"}]]}},
            ErrorClass.INVALID_CONFIGURATION,
        ),
    ],
)
async def test_a_wrong_configuration_waits_for_a_person(lab: Lab, change: dict[str, Any], kind: ErrorClass) -> None:
    client, network = lab.client(), lab.network({**lab.bridge(), **change})
    failed = await add_fails(client, network, lab.attachment("one"))
    assert (failed.kind, failed.action) == (kind, Action.STOP)
    assert lab.leased() == set()


async def test_a_bridge_of_another_subnet_waits_for_a_person_and_keeps_its_ports(lab: Lab) -> None:
    client, first = lab.client(), lab.attachment("one")
    await client.add(lab.network(lab.bridge()), first)
    other = lab.network(lab.bridge("10.78.0.0/24"))
    failed = await add_fails(client, other, lab.attachment("two"))
    assert (failed.kind, failed.action) == (ErrorClass.WRONG_SUBNET, Action.STOP)
    assert await client.check(lab.network(lab.bridge()).name, first)


async def test_a_bridge_without_an_address_is_told_apart_and_setting_one_helps(lab: Lab) -> None:
    client, network, attachment = lab.client(), lab.network(lab.bridge()), lab.attachment("one")
    lab.on_node("ip", "link", "add", "lab0", "type", "bridge")
    lab.on_node("ip", "link", "add", "port0", "type", "veth", "peer", "name", "port1")
    lab.on_node("ip", "link", "set", "port0", "master", "lab0")
    lab.on_node("ip", "link", "del", "port0")
    failed = await add_fails(client, network, attachment)
    assert (failed.kind, failed.action) == (ErrorClass.BRIDGE_MAC, Action.REPAIR_BRIDGE)
    await client.delete(network, attachment)
    await add_to_some_bridge(lab, client, network, attachment)
    assert await client.check(network.name, attachment)


async def test_an_add_killed_anywhere_is_undone_and_done_anew(lab: Lab) -> None:
    client, network = lab.client(), lab.whole_network()
    chance = random.Random()
    killed = 0
    for turn in range(8):
        attachment = lab.attachment(f"run-{turn}", PUBLISHED)
        task = asyncio.create_task(client.add(network, attachment))
        await asyncio.wait((task,), timeout=chance.uniform(0.0, 0.25))
        killed += task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await delete_twice_at_most(client, network, attachment)
        result = await add_to_some_bridge(lab, client, network, attachment)
        assert lab.leased() == {str(address) for address in addresses(result, "eth0")}
        assert len(lab.ports()) == 1
        await delete_twice_at_most(client, network, attachment)
        rules = lab.rules()
        assert not any(str(address) in rules for address in addresses(result, "eth0"))
        assert (lab.leased(), lab.ports(), await client.cached()) == (set(), set(), ())
    assert killed > 0


async def test_rules_that_somebody_flushed_come_back_without_a_flap(lab: Lab) -> None:
    client, network, attachment = lab.client(), lab.whole_network(), lab.attachment("one", PUBLISHED)
    before = await client.add(network, attachment)
    index = lab.index(attachment)
    with lab.server(attachment, 80):
        assert lab.ask_from_outside(NODE_ADDRESS, 7001) == "hello"
        for table in ("nat", "filter"):
            lab.on_node("iptables", "-t", table, "-F")
        assert lab.ask_from_outside(NODE_ADDRESS, 7001) is None
        with pytest.raises(PluginError) as caught:
            await client.check(network.name, attachment)
        assert classify(caught.value).action is Action.REPAIR_RULES
        await client.repair(network.name, attachment)
        assert lab.ask_from_outside(NODE_ADDRESS, 7001) == "hello"
    assert lab.index(attachment) == index
    assert lab.addresses(attachment) == [str(address) for address in addresses(before, "eth0")]
    await client.delete(network, attachment)
    assert 'id: "one"' not in lab.rules()


async def test_a_repair_of_what_is_well_changes_nothing_to_be_seen(lab: Lab) -> None:
    client, network, attachment = lab.client(), lab.whole_network(), lab.attachment("one", PUBLISHED)
    await client.add(network, attachment)
    before = sorted(line for line in lab.rules().splitlines() if line.startswith("-A"))
    await client.repair(network.name, attachment)
    assert sorted(line for line in lab.rules().splitlines() if line.startswith("-A")) == before


async def test_a_damaged_record_does_not_stand_in_the_way_of_the_end(lab: Lab) -> None:
    client, network, attachment = lab.client(), lab.network(lab.bridge()), lab.attachment("one")
    await client.add(network, attachment)
    (lab.folder / "cache" / "results" / "lab-one-eth0").write_bytes(b'{"kind":')
    await client.delete(network, attachment)
    assert (lab.leased(), lab.ports(), await client.cached()) == (set(), set(), ())
