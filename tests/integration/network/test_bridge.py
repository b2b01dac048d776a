"""The node's bridge on this machine's kernel, in a network namespace of the test's own."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterator

import pytest
from tests.integration.network.node import BRIDGE, Node

from perdure.network import bridge
from perdure.network.bridge import Bridge, NotABridge
from perdure.network.command import CommandFailed, run

pytestmark = pytest.mark.root

PORT = 7777


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    try:
        made.start()
        yield made
    finally:
        made.remove()


async def look(node: Node) -> Bridge:
    found = await bridge.look(BRIDGE, node.launcher)
    assert found is not None
    return found


async def test_a_bridge_is_seen_with_its_ports(node: Node) -> None:
    assert await bridge.look("nothing0", node.launcher) is None
    assert (await look(node)).ports == ()
    node.member(11, "one")
    node.batch(
        node.name,
        "link add other9 type ifb",
        "link add pair0 type veth peer name pair1",
        f"link set other9 master {BRIDGE}",
        f"link set pair0 master {BRIDGE}",
    )
    found = await look(node)
    assert {(port.name, port.kind, port.peer_elsewhere) for port in found.ports} == {
        ("veth11", "veth", True),
        ("other9", "ifb", False),
        ("pair0", "veth", False),
    }
    assert found.mac == "02:00:00:00:88:01"


@pytest.mark.parametrize(("name", "kind"), [("wan0", "veth"), ("lo", "device")])
async def test_a_link_of_another_kind_is_named(node: Node, name: str, kind: str) -> None:
    with pytest.raises(NotABridge, match=f"{name}.*{kind}"):
        await bridge.look(name, node.launcher)


async def test_an_unusable_mac_is_repaired_while_a_connection_goes_on(node: Node) -> None:
    member = node.member(11, "one")
    there = str(member.addresses[0])
    with node.listen(member.uid, there, PORT) as server, node.connect(node.name, there, PORT) as client:
        end = server.accept()[0]
        found = await look(node)
        assert await bridge.repair_mac(found, node.launcher) is None
        given = await bridge.repair_mac(Bridge(BRIDGE, "00:00:00:00:00:00", found.ports), node.launcher)
        repaired = await look(node)
        assert repaired.mac == given
        assert repaired.ports == found.ports
        with end:
            end.settimeout(10)
            client.sendall(b"still here")
            assert end.recv(32) == b"still here"
    node.member(12, "one")
    assert (await look(node)).mac == given


async def test_a_command_has_a_deadline_and_takes_its_children_along(node: Node) -> None:
    with pytest.raises(CommandFailed, match=r"waiting.*did not end within 0\.2 seconds") as caught:
        await run("waiting", "sh", "-c", "sleep 640 | sleep 650", launcher=node.launcher, seconds=0.2)
    assert caught.value.code is None
    until = time.monotonic() + 10
    while left := _processes_in(node.name):
        assert time.monotonic() < until, left
        await asyncio.sleep(0.01)


def _processes_in(space: str) -> str:
    command = ["ip", "netns", "pids", space]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
