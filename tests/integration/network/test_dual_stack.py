"""IPv6, alone and beside IPv4: which address is told, who answers under it, and how ports lead to it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from tests.integration.network.own_node import PORTMAP, SUBNET4, SUBNET6, OwnNode, bridge, run, socket_in, tcp

from perdure.plan.world import SandboxFacts
from perdure.reconcile.ports.sandbox import Sandbox, SandboxPlan

pytestmark = pytest.mark.root

HERE = Path("/proc/thread-self/ns/net")


async def attached(sandbox: Sandbox, plan: SandboxPlan) -> SandboxFacts:
    await sandbox.create(plan)
    return await sandbox.attach(plan)


def answers(server: socket.socket, client: socket.socket, address: str, port: int) -> bool:
    """Whether `client` reaches `server` under that address, and hears it."""
    with client:
        client.connect((address, port))
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"hello")
            return client.recv(16) == b"hello"


@pytest.mark.parametrize("subnets", [(SUBNET4, SUBNET6), (SUBNET6, SUBNET4)])
async def test_ipv4_is_told_first_whatever_the_configuration_begins_with(
    node: OwnNode, subnets: tuple[str, ...]
) -> None:
    node.write(bridge(*subnets), PORTMAP)
    agent, plan = await node.agent(), node.plan()
    facts = await attached(agent.sandbox, plan)
    assert facts.addresses == ("10.89.0.2", "fd89::2")
    assert sorted(node.addresses(plan.ref.uid)) == sorted(facts.addresses)
    await agent.sandbox.remove(plan.ref)
    assert node.traces() == []


async def test_a_runtime_answers_a_neighbour_under_each_of_its_addresses(node: OwnNode) -> None:
    node.write(bridge(SUBNET4, SUBNET6), PORTMAP)
    sandbox = (await node.agent()).sandbox
    server = node.plan()
    client = node.plan(of=server.ref)
    facts = await attached(sandbox, server)
    await attached(sandbox, client)
    for address in facts.addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with node.listen(server.ref.uid, address) as listening:
            assert answers(listening, socket_in(node.netns(client.ref.uid), family), address, 80)


async def test_a_runtime_with_ipv6_alone_is_reached_by_address_and_by_port_and_is_well(node: OwnNode) -> None:
    node.write(bridge(SUBNET6), PORTMAP)
    agent, server = await node.agent(), node.plan(tcp(7001))
    client = node.plan(of=server.ref)
    facts = await attached(agent.sandbox, server)
    await attached(agent.sandbox, client)
    assert facts.addresses == ("fd89::2",)
    with node.listen(server.ref.uid, "fd89::2") as listening:
        assert answers(listening, socket_in(node.netns(client.ref.uid), socket.AF_INET6), "fd89::2", 80)
        assert answers(listening, socket_in(HERE, socket.AF_INET6), "fd89::1", 7001)
    assert await agent.upkeep.look() == []
    assert node.woken == []
    await agent.sandbox.remove(server.ref)
    await agent.sandbox.remove(client.ref)
    assert node.traces() == []


async def test_a_lost_ipv6_address_is_seen_and_comes_back(node: OwnNode) -> None:
    node.write(bridge(SUBNET6), PORTMAP)
    agent, plan = await node.agent(), node.plan()
    await attached(agent.sandbox, plan)
    node.inside(plan.ref.uid, "ip", "address", "flush", "dev", "eth0", "scope", "global")
    assert await agent.upkeep.look() == []
    assert node.woken == [plan.ref.uid]
    facts = await agent.sandbox.attach(plan)
    assert tuple(node.addresses(plan.ref.uid)) == facts.addresses
    assert facts.damage == ""


@pytest.mark.parametrize("subnets", [(SUBNET6,), (SUBNET4, SUBNET6)])
async def test_flushed_port_rules_of_ipv6_are_seen_and_come_back(node: OwnNode, subnets: tuple[str, ...]) -> None:
    node.write(bridge(*subnets), PORTMAP)
    agent, plan = await node.agent(), node.plan(tcp(7001))
    facts = await attached(agent.sandbox, plan)
    before = sorted(node.traces())
    run("ip6tables", "-t", "nat", "-F")
    assert await agent.upkeep.look() == []
    assert node.woken == [plan.ref.uid]
    assert await agent.sandbox.attach(plan) == facts, "the interface and its addresses stay"
    assert sorted(node.traces()) == before
    with node.listen(plan.ref.uid, "fd89::2") as listening:
        assert answers(listening, socket_in(HERE, socket.AF_INET6), "fd89::1", 7001)
    assert await agent.upkeep.look() == []
    assert node.woken == [plan.ref.uid]
