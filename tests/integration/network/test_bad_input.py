"""Whatever is wrong with a node's setup or with what is asked of it has a reason and a message of its own, which names what
to change; nothing is left of the attempt, and it works as soon as that is changed."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.integration.network.own_node import BRIDGE, NAME, PLUGINS, PORTMAP, OwnNode, bridge, run, tcp

from perdure.api.conditions import Reason
from perdure.api.network import Network, PortProtocol, RuntimePort
from perdure.api.runtime import RuntimeSpec
from perdure.plan.world import HostPort
from perdure.reconcile.ports.errors import PortTaken, SandboxFailed
from perdure.reconcile.ports.sandbox import SandboxPlan

pytestmark = pytest.mark.root


@dataclass(frozen=True)
class Case:
    """A node set up by `prepare`: why nobody gets a network on it, and what the message names."""

    prepare: Callable[[OwnNode], None]
    reason: Reason
    names: tuple[str, ...]
    ports: tuple[HostPort, ...] = ()
    of_node: bool = True
    repair: Callable[[], None] = lambda: None


def ranges(*subnets: str) -> dict[str, Any]:
    return {"type": "host-local", "ranges": [[{"subnet": subnet}] for subnet in subnets]}


def answering(*addresses: str) -> Callable[[OwnNode], None]:
    """A plugin that makes nothing and answers with these addresses."""

    def prepare(node: OwnNode) -> None:
        own = node.folder / "own"
        own.mkdir()
        result = {"cniVersion": "1.0.0", "ips": [{"address": address} for address in addresses]}
        (own / "idle").write_text(f"#!/bin/sh\n[ $CNI_COMMAND != ADD ] || echo '{json.dumps(result)}'\n")
        (own / "idle").chmod(0o755)
        node.plugins = (own, PLUGINS)
        node.write({"type": "idle"})

    return prepare


def another_link(kind: str, *further: str) -> Callable[[OwnNode], None]:
    """A link that has the bridge's name already."""

    def prepare(node: OwnNode) -> None:
        node.write()
        run("ip", "link", "add", BRIDGE, "type", kind)
        if further:
            run(*further)

    return prepare


def unlink(file: Path) -> None:
    file.unlink()


def remove_link() -> None:
    run("ip", "link", "delete", BRIDGE)


CASES = {
    "no configuration": Case(
        lambda node: None, Reason.NO_CNI_CONFIGURATION, ("no network configuration in", "net.d", ".conflist")
    ),
    "an empty folder": Case(
        lambda node: node.configurations.mkdir(), Reason.NO_CNI_CONFIGURATION, ("no network configuration in", "net.d")
    ),
    "not JSON": Case(
        lambda node: node.configure('{"name": "agents",'),
        Reason.CNI_CONFIGURATION_INVALID,
        ("10-agents.conflist", "is not a JSON object"),
    ),
    "no plugins": Case(
        lambda node: node.configure(json.dumps({"cniVersion": "1.0.0", "name": NAME, "plugins": []})),
        Reason.CNI_CONFIGURATION_INVALID,
        ("10-agents.conflist", "lists no plugins"),
    ),
    "a version of the future": Case(
        lambda node: node.write(cniVersion="9.9.9"),
        Reason.CNI_CONFIGURATION_INVALID,
        ("10-agents.conflist", "cniVersion is 9.9.9", "1.0.0"),
    ),
    "a version that the plugins do not speak": Case(
        lambda node: node.write(cniVersion="1.1.0"),
        Reason.CNI_CONFIGURATION_INVALID,
        ("bridge", "1.1.0"),
    ),
    "an unknown plugin": Case(
        lambda node: node.write(bridge(), {"type": "absent"}),
        Reason.CNI_PLUGIN_MISSING,
        ("failed to find plugin absent in", str(PLUGINS), "install it"),
    ),
    "an unknown plugin for addresses": Case(
        lambda node: node.write(bridge(ipam={"type": "absent"})),
        Reason.CNI_PLUGIN_MISSING,
        ('failed to find plugin "absent" in', str(PLUGINS)),
    ),
    "ranges that overlap": Case(
        lambda node: node.write(bridge(ipam=ranges("10.89.0.0/24", "10.89.0.0/16"))),
        Reason.CNI_CONFIGURATION_INVALID,
        ("10.89.0.0/24", "10.89.0.0/16", NAME, "overlap"),
    ),
    "a subnet that is none": Case(
        lambda node: node.write(bridge(ipam=ranges("10.89.0.0/33"))),
        Reason.CNI_CONFIGURATION_INVALID,
        ("10.89.0.0/33",),
    ),
    "a bridge with VLANs": Case(
        lambda node: node.write(bridge(vlan=100)),
        Reason.CNI_CONFIGURATION_INVALID,
        (NAME, "vlan", "without them"),
    ),
    "a bridge of another subnet": Case(
        another_link("bridge", "ip", "address", "add", "10.90.0.1/24", "dev", BRIDGE),
        Reason.BRIDGE_CONFLICT,
        (BRIDGE, "already has an IP address different from 10.89.0.1"),
        repair=remove_link,
    ),
    "a bridge that is not a bridge": Case(
        another_link("ifb"), Reason.BRIDGE_CONFLICT, (BRIDGE, "already exists but is not a bridge"), repair=remove_link
    ),
    "ports without portmap": Case(
        lambda node: node.write(bridge()),
        Reason.CNI_CONFIGURATION_INVALID,
        ("ports on the node", NAME, "add the portmap plugin"),
        ports=(tcp(7001),),
        of_node=False,
    ),
    "no address": Case(answering(), Reason.NO_ADDRESS, (NAME, "no address", "ipam", "net.d"), of_node=False),
    "addresses that reach nobody": Case(
        answering("169.254.1.1/16", "fe80::1/64", "127.0.0.2/8"),
        Reason.NO_ADDRESS,
        (NAME, "no address"),
        of_node=False,
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_what_is_wrong_is_told_and_nothing_is_left_of_the_attempt(node: OwnNode, case: Case) -> None:
    case.prepare(node)
    sandbox, plan = (await node.agent()).sandbox, node.plan(*case.ports)
    links = node.links()
    await sandbox.create(plan)
    with pytest.raises(SandboxFailed) as caught:
        await sandbox.attach(plan)
    assert caught.value.reason is case.reason
    for name in case.names:
        assert name in str(caught.value)
    assert caught.value.of_node == case.of_node
    assert node.traces() == [
        f"file netns/{plan.ref.uid}",
        *(f"link {name}" for name in links if name not in ("lo", BRIDGE)),
    ]

    case.repair()
    node.write()
    assert (await sandbox.attach(plan)).attached
    await sandbox.remove(plan.ref)
    assert node.traces() == []


async def test_ports_are_refused_on_a_node_without_a_network(node: OwnNode) -> None:
    ports = (RuntimePort(name="game", container_port=80, protocol=PortProtocol.TCP),)
    plan = SandboxPlan(node.plan().ref, RuntimeSpec(image="any", network=Network(), ports=ports), (tcp(7001),))
    with pytest.raises(
        SandboxFailed, match=r"asks for ports on the node .*game.*put a CNI configuration into"
    ) as caught:
        await (await node.agent()).sandbox.create(plan)
    assert caught.value.reason is Reason.NO_CNI_CONFIGURATION
    assert node.traces() == []


async def test_the_first_of_two_configurations_is_used_and_the_other_is_told_of_once(node: OwnNode) -> None:
    node.write(file="20-second.conflist", name="second")
    node.write()
    sandbox, plans = (await node.agent()).sandbox, [node.plan(), node.plan()]
    with capture_logs() as logs:
        for plan in plans:
            await sandbox.create(plan)
            await sandbox.attach(plan)
    told = [str(line) for line in logs if line["log_level"] == "warning"]
    assert len(told) == 1
    for name in ("more networks than one", f"{NAME} in 10-agents.conflist is used", "second in 20-second.conflist"):
        assert name in told[0]
    assert {path.name for path in node.leases.iterdir()} == {NAME}


async def test_an_invalid_configuration_beside_a_valid_one_is_skipped_and_told_of(node: OwnNode) -> None:
    node.configure("{", file="00-broken.conflist")
    node.write()
    sandbox, plan = (await node.agent()).sandbox, node.plan()
    with capture_logs() as logs:
        await sandbox.create(plan)
        assert (await sandbox.attach(plan)).addresses
    assert [line for line in logs if "00-broken.conflist" in str(line) and line["log_level"] == "warning"]


async def test_whoever_is_attached_is_removed_whatever_became_of_the_configuration(node: OwnNode) -> None:
    node.write()
    sandbox, gone, broken = (await node.agent()).sandbox, node.plan(tcp(7001)), node.plan(tcp(7002))
    for plan in (gone, broken):
        await sandbox.create(plan)
        await sandbox.attach(plan)
    node.configure("{")
    await sandbox.remove(broken.ref)
    unlink(node.configurations / "10-agents.conflist")
    agent = await node.agent()
    await agent.sandbox.remove(gone.ref)
    assert node.traces() == []


async def test_a_plugin_that_was_uninstalled_is_asked_for_before_what_it_did_is_forgotten(node: OwnNode) -> None:
    own = node.folder / "own"
    own.mkdir()
    (own / "late").symlink_to(PLUGINS / "portmap")
    node.plugins = (own, PLUGINS)
    node.write(bridge(), {**PORTMAP, "type": "late"})
    sandbox, plan = (await node.agent()).sandbox, node.plan(tcp(7001))
    await sandbox.create(plan)
    await sandbox.attach(plan)
    unlink(own / "late")
    with pytest.raises(SandboxFailed, match="failed to find plugin late in") as caught:
        await sandbox.remove(plan.ref)
    assert caught.value.reason is Reason.CNI_PLUGIN_MISSING
    assert any("--dport 7001" in trace for trace in node.traces())
    (own / "late").symlink_to(PLUGINS / "portmap")
    await sandbox.remove(plan.ref)
    assert node.traces() == []


async def test_records_that_cannot_be_read_are_told_of(node: OwnNode) -> None:
    node.write()
    sandbox, plan = (await node.agent()).sandbox, node.plan()
    await sandbox.create(plan)
    (node.run_dir / "cni/results").write_text("")
    for step in (sandbox.attach(plan), sandbox.remove(plan.ref)):
        with pytest.raises(SandboxFailed, match=r"cannot list cached results in .*results"):
            await step
    unlink(node.run_dir / "cni/results")
    assert (await sandbox.attach(plan)).addresses
    await sandbox.remove(plan.ref)
    assert node.traces() == []


@pytest.mark.parametrize(
    ("family", "kind", "address", "protocol"),
    [
        (socket.AF_INET, socket.SOCK_STREAM, "0.0.0.0", "TCP"),
        (socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1", "TCP"),
        (socket.AF_INET6, socket.SOCK_STREAM, "::", "TCP"),
        (socket.AF_INET6, socket.SOCK_STREAM, "::1", "TCP"),
        (socket.AF_INET, socket.SOCK_DGRAM, "0.0.0.0", "UDP"),
        (socket.AF_INET6, socket.SOCK_DGRAM, "::1", "UDP"),
    ],
)
async def test_a_port_that_a_program_of_the_node_has_is_refused_until_it_ends(
    node: OwnNode, family: socket.AddressFamily, kind: socket.SocketKind, address: str, protocol: str
) -> None:
    node.write()
    port = HostPort("game", protocol, 80, 7001)
    other = HostPort("game", {"TCP": "UDP", "UDP": "TCP"}[protocol], 80, 7001)
    sandbox, plan = (await node.agent()).sandbox, node.plan(port)
    await sandbox.create(plan)
    with socket.socket(family, kind) as program:
        if family is socket.AF_INET6:
            program.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        program.bind((address, 7001))
        if kind is socket.SOCK_STREAM:
            program.listen()
        with pytest.raises(PortTaken, match=f"port 7001/{protocol} .*another program.*sport = :7001") as caught:
            await sandbox.attach(plan)
        assert caught.value.reason is Reason.PORT_TAKEN
        assert node.traces() == [f"file netns/{plan.ref.uid}"]
        await sandbox.ask_for_ports(node.plan(other))
    assert (await sandbox.attach(plan)).ports == (port,)


async def test_whoever_finds_no_address_free_gets_one_that_was_given_back(node: OwnNode) -> None:
    node.write(bridge("10.89.0.0/30"), PORTMAP)
    sandbox, first, second = (await node.agent()).sandbox, node.plan(), node.plan()
    for plan in (first, second):
        await sandbox.create(plan)
    has = await sandbox.attach(first)
    with pytest.raises(SandboxFailed, match=r"no IP addresses .* range set: 10\.89\.0\.1-10\.89\.0\.2") as caught:
        await sandbox.attach(second)
    assert (caught.value.reason, caught.value.of_node) == (Reason.ADDRESS_POOL_EXHAUSTED, False)
    assert tuple(node.leased()) == has.addresses
    assert not [trace for trace in node.traces() if second.ref.uid in trace and "netns/" not in trace]
    await sandbox.remove(first.ref)
    assert (await sandbox.attach(second)).addresses == has.addresses


async def test_an_address_that_nobody_has_any_more_is_freed_when_none_is_left(node: OwnNode) -> None:
    node.write(bridge("10.89.0.0/30"), PORTMAP)
    sandbox, lost, plan = (await node.agent()).sandbox, node.plan(), node.plan()
    await sandbox.create(lost)
    await sandbox.attach(lost)
    unlink(node.run_dir / "cni/attached" / lost.ref.uid)
    node.known.discard(lost.ref.uid)
    sandbox = (await node.agent()).sandbox
    await sandbox.create(plan)
    assert (await sandbox.attach(plan)).addresses == ("10.89.0.2",)
