"""Attachments made and taken away by the reference plugins on this kernel."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.integration.network.cni.lab import NODE_ADDRESS, SUBNET4, SUBNET6, Lab

from perdure.network.cni.attachment import Attachment, Bandwidth, Capabilities, PortMapping
from perdure.network.cni.client import ValidAttachment
from perdure.network.cni.error_classes import ErrorClass
from perdure.network.cni.errors import PluginError
from perdure.network.cni.results import addresses
from perdure.network.cni.retries import classify

pytestmark = pytest.mark.root

PUBLISHED = Capabilities(
    port_mappings=(PortMapping(7001, 80, "tcp"),),
    bandwidth=Bandwidth(ingress_rate=8_000_000, ingress_burst=800_000, egress_rate=8_000_000, egress_burst=800_000),
)


@pytest.mark.parametrize("subnets", [(SUBNET4,), (SUBNET6,), (SUBNET6, SUBNET4)], ids=["ipv4", "ipv6", "dual"])
async def test_the_addresses_told_are_the_kernels_and_go_with_the_attachment(
    lab: Lab, subnets: tuple[str, ...]
) -> None:
    client, network, attachment = lab.client(), lab.network(lab.bridge(*subnets)), lab.attachment("one")
    result = await client.add(network, attachment)
    told = [str(address) for address in addresses(result, "eth0")]
    assert told == sorted(lab.addresses(attachment), key=lambda text: ":" in text)
    assert len(told) == len(subnets)
    assert lab.leased() == set(told)
    assert await client.check(network.name, attachment)
    await client.delete(network, attachment)
    await client.delete(network, attachment)
    assert (lab.leased(), lab.ports(), await client.cached()) == (set(), set(), ())


@pytest.mark.parametrize(
    "plugin", [{"type": "ptp"}, {"type": "macvlan", "master": "up0", "mode": "bridge"}], ids=["ptp", "macvlan"]
)
async def test_other_interface_plugins(lab: Lab, plugin: dict[str, Any]) -> None:
    client, attachment = lab.client(), lab.attachment("one")
    network = lab.network({**plugin, "ipam": lab.ipam(SUBNET4)})
    result = await client.add(network, attachment)
    assert [str(address) for address in addresses(result, "eth0")] == lab.addresses(attachment)
    assert await client.check(network.name, attachment)
    await client.delete(network, attachment)
    assert (lab.leased(), lab.ports()) == (set(), set())


async def test_loopback(lab: Lab) -> None:
    client, network = lab.client(), lab.network({"type": "loopback"})
    attachment = Attachment("one", lab.attachment("one").netns, ifname="lo")
    assert addresses(await client.add(network, attachment), "lo") == ()
    await client.delete(network, attachment)


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0"])
async def test_every_version_of_the_configuration(lab: Lab, version: str) -> None:
    client, attachment = lab.client(), lab.attachment("one", PUBLISHED)
    spoken = [plugin for plugin in lab.whole_network().plugins if version != "0.3.1" or plugin.type != "firewall"]
    network = lab.network(*(json.loads(plugin.document) for plugin in spoken), version=version)
    result = await client.add(network, attachment)
    assert [str(address) for address in addresses(result, "eth0")] == lab.addresses(attachment)
    await client.delete(network, attachment)
    assert (lab.leased(), lab.ports()) == (set(), set())


async def test_a_published_port_answers_outside_and_limits_are_set_and_all_of_it_goes(lab: Lab) -> None:
    client, network, attachment = lab.client(), lab.whole_network(), lab.attachment("one", PUBLISHED)
    address = str(addresses(await client.add(network, attachment), "eth0")[0])
    with lab.server(attachment, 80):
        assert lab.ask_from_outside(NODE_ADDRESS, 7001) == "hello"
    assert "tbf" in lab.on_node("tc", "qdisc")
    assert address in lab.rules()
    await client.delete(network, attachment)
    assert address not in lab.rules()
    assert 'id: "one"' not in lab.rules()
    assert lab.ask_from_outside(NODE_ADDRESS, 7001) is None
    assert (lab.leased(), lab.ports()) == (set(), set())


async def test_an_edited_configuration_does_not_break_the_end_of_what_it_began(lab: Lab) -> None:
    client, network, attachment = lab.client(), lab.whole_network(), lab.attachment("one", PUBLISHED)
    await client.add(network, attachment)
    edited = lab.network({"type": "ptp", "ipam": {**lab.ipam("10.99.0.0/24"), "dataDir": str(lab.folder / "other")}})
    await client.delete(edited, lab.attachment("one"))
    assert (lab.leased(), lab.ports()) == (set(), set())
    assert 'id: "one"' not in lab.rules()


async def test_a_network_namespace_that_is_gone_holds_no_address(lab: Lab) -> None:
    client, network, attachment = lab.client(), lab.whole_network(), lab.attachment("one", PUBLISHED)
    await client.add(network, attachment)
    lab.lose_netns(attachment)
    await client.delete(network, attachment)
    assert (lab.leased(), lab.ports(), await client.cached()) == (set(), set(), ())


async def test_a_plain_file_where_a_network_namespace_was_holds_no_address(lab: Lab) -> None:
    client, network, attachment = lab.client(), lab.whole_network(), lab.attachment("one", PUBLISHED)
    await client.add(network, attachment)
    lab.lose_netns(attachment)
    lab.leave_plain_file(attachment)
    await client.delete(network, attachment)
    assert (lab.leased(), lab.ports(), await client.cached()) == (set(), set(), ())


async def test_collecting_detaches_what_is_no_longer_wanted_and_nothing_else(lab: Lab) -> None:
    client, network = lab.client(), lab.network(lab.bridge())
    kept, stale = lab.attachment("kept"), lab.attachment("stale")
    await client.add(network, kept)
    await client.add(network, stale)
    await client.gc(network, [ValidAttachment("kept", "eth0")])
    assert lab.leased() == set(lab.addresses(kept))
    assert await client.check(network.name, kept)
    assert len(await client.cached()) == 1


async def test_status_and_collecting_are_asked_of_plugins_that_know_them(lab: Lab) -> None:
    client, network, attachment = lab.client(), lab.network(lab.bridge(), version="1.1.0"), lab.attachment("one")
    if "1.1.0" in await client.version("bridge"):
        await client.add(network, attachment)
        await client.status(network)
        await client.gc(network, [])
        assert lab.leased() == set()
    else:
        with pytest.raises(PluginError) as caught:
            await client.status(network)
        assert classify(caught.value).kind is ErrorClass.COMMAND_UNSUPPORTED
