"""What somebody takes away of networks that are in use comes back, without what can stay being touched; and what nobody has
any more goes, on a second look, and only where it is this network's."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
from tests.integration.network.own_node import BRIDGE, GATEWAY4, PLUGINS, PORTMAP, OwnNode, bridge, run, socket_in, tcp
from tests.unit.network.cni.plugins import calls, led_in, port_keeper, script

from perdure.api.names import InstallationId, Uid
from perdure.cli.networks import Networks
from perdure.network import netns
from perdure.network.container_ids import ContainerIds
from perdure.network.upkeep import ASK_AGAIN_LOOKS
from perdure.plan.certainty import Absent, Present
from perdure.plan.world import SandboxFacts
from perdure.reconcile.ports.sandbox import SandboxPlan

pytestmark = pytest.mark.root

SECOND_ADDRESS = "10.91.0.2"
FIREWALL: dict[str, object] = {"type": "firewall"}


@dataclass
class Pair:
    """A runtime with a port and one without, of one namespace; the agent that attached them."""

    node: OwnNode
    agent: Networks
    published: SandboxPlan
    plain: SandboxPlan
    facts: SandboxFacts

    async def look(self) -> None:
        assert await self.agent.upkeep.look() == []

    async def damage(self, uid: Uid) -> str:
        plan = self.published if uid == self.published.ref.uid else self.plain
        seen = await self.agent.sandbox.observe(plan.ref)
        assert isinstance(seen, Present)
        return seen.it.damage

    @contextmanager
    def connected(self) -> Iterator[None]:
        """A connection from the one without to the one with a port, open all the while, with data at its end."""
        address = self.facts.addresses[0]
        with (
            self.node.listen(self.published.ref.uid, address, 81) as server,
            socket_in(self.node.netns(self.plain.ref.uid)) as client,
        ):
            client.connect((address, 81))
            connection, _ = server.accept()
            with connection:
                yield
                client.sendall(b"still here")
                connection.settimeout(20)
                assert connection.recv(16) == b"still here"

    def port_leads_in(self) -> bool:
        with self.node.listen(self.published.ref.uid, self.facts.addresses[0]) as server:
            try:
                client = socket.create_connection((GATEWAY4, 7001), timeout=20)
            except ConnectionRefusedError:
                return False
            with client:
                server.accept()[0].close()
            return True


async def pair(node: OwnNode, *plugins: dict[str, object]) -> Pair:
    node.write(*plugins)
    agent, published = await node.agent(), node.plan(tcp(7001))
    plain = node.plan(of=published.ref)
    for plan in (published, plain):
        await agent.sandbox.create(plan)
    facts = await agent.sandbox.attach(published)
    await agent.sandbox.attach(plain)
    return Pair(node, agent, published, plain, facts)


async def test_a_look_at_what_is_well_finds_and_changes_nothing(node: OwnNode) -> None:
    here = await pair(node)
    before = node.traces()
    await here.look()
    assert node.woken == []
    assert node.traces() == before
    assert here.port_leads_in()


async def test_limits_of_bandwidth_leave_the_link_on_the_bridge_protected(node: OwnNode) -> None:
    """bandwidth names the link that it makes for traffic from the runtime after those of bridge."""
    limits = {"type": "bandwidth", "egressRate": 8_000_000, "egressBurst": 8_000_000}
    here = await pair(node, bridge(), PORTMAP, limits)
    ports = {link["ifname"] for link in json.loads(run("ip", "-j", "link", "show", "master", BRIDGE))}
    assert len(ports) == 2
    assert {attached.port for attached in here.agent.upkeep.attachments.all()} == ports
    assert ports <= set(re.findall(r'"(veth\w+)"', "".join(node.elements())))
    await here.look()
    assert node.woken == []
    assert here.port_leads_in()


async def test_flushed_port_rules_come_back_and_whoever_is_connected_stays_so(node: OwnNode) -> None:
    here = await pair(node)
    before = sorted(node.traces())
    with here.connected():
        run("iptables", "-t", "nat", "-F")
        assert not here.port_leads_in()
        await here.look()
        assert node.woken == [here.published.ref.uid], "who has no port has lost nothing"
        assert "rules-missing" in await here.damage(here.published.ref.uid)
        assert await here.agent.sandbox.attach(here.published) == here.facts
        assert here.port_leads_in()
    assert sorted(node.traces()) == before


async def test_edited_ports_answer_and_those_that_were_taken_out_do_not_and_whoever_is_connected_stays_so(
    node: OwnNode,
) -> None:
    here = await pair(node)
    uid = here.published.ref.uid
    edits = ((tcp(7002), tcp(7003, "web", 8080)), (tcp(7003, "web", 8080),), (tcp(7003, "web"),), (tcp(7001),))
    with here.connected():
        for ports in edits:
            changed = SandboxPlan(here.published.ref, here.published.spec, ports)
            facts = await here.agent.sandbox.attach(changed)
            assert (facts.ports, facts.addresses) == (ports, here.facts.addresses)
            leading = {port.host_port: port.container_port for port in ports}
            for number in (7001, 7002, 7003):
                assert node.answers(uid, number, leading.get(number, 80)) == (number in leading)
    for plan in (here.published, here.plain):
        await here.agent.sandbox.remove(plan.ref)
    assert node.traces() == []


@pytest.mark.parametrize("command", ["DEL", "ADD"])
async def test_a_change_of_ports_that_was_cut_off_is_seen_and_made_whole_even_if_it_is_not_wanted_any_more(
    node: OwnNode, command: str
) -> None:
    plugins = node.folder / "plugins"
    plugins.mkdir()
    port_keeper(plugins, "keeper")
    node.plugins = (plugins, PLUGINS)
    here = await pair(node, bridge(), {"type": "keeper", "capabilities": {"portMappings": True}})
    (plugins / f"stop-{command}").touch()
    changed = SandboxPlan(here.published.ref, here.published.spec, (tcp(7002),))
    changing = asyncio.create_task(here.agent.sandbox.attach(changed))
    await asyncio.to_thread((plugins / "begun").read_bytes)
    changing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await changing
    (plugins / f"stop-{command}").unlink()
    here.agent = await node.agent()
    assert await here.damage(here.published.ref.uid) == "a change of its ports has not ended"
    assert await here.agent.sandbox.attach(here.published) == here.facts
    assert led_in(plugins) == {7001}
    assert await here.damage(here.published.ref.uid) == ""


async def test_after_a_flush_of_everything_the_firewall_is_back_with_the_look_and_ports_with_the_repair(
    node: OwnNode,
) -> None:
    here = await pair(node)
    elements, before = sorted(node.elements()), sorted(node.traces())
    with here.connected():
        run("nft", "flush", "ruleset")
        assert node.elements() == []
        await here.look()
        assert sorted(node.elements()) == elements
        assert node.woken == [here.published.ref.uid]
        assert await here.agent.sandbox.attach(here.published) == here.facts
        assert here.port_leads_in()
    assert sorted(node.traces()) == before


async def test_a_new_agent_restores_what_was_flushed_while_there_was_none(node: OwnNode) -> None:
    here = await pair(node)
    before = sorted(node.traces())
    run("nft", "flush", "ruleset")
    here.agent = await node.agent()
    await here.look()
    assert node.woken == [here.published.ref.uid]
    assert await here.agent.sandbox.attach(here.published) == here.facts
    assert sorted(node.traces()) == before


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("ip", "link", "delete", "eth0"), "interface eth0 is gone"),
        (("ip", "link", "set", "eth0", "down"), "interface eth0 is down"),
        (("ip", "address", "flush", "dev", "eth0"), "interface eth0 has lost address"),
    ],
)
async def test_a_damaged_interface_is_attached_anew_and_nobody_else_is(
    node: OwnNode, command: tuple[str, ...], why: str
) -> None:
    here = await pair(node)
    uid = here.plain.ref.uid
    node.inside(uid, *command)
    await here.look()
    assert node.woken == [uid]
    assert why in await here.damage(uid)
    facts = await here.agent.sandbox.attach(here.plain)
    assert tuple(node.addresses(uid)) == facts.addresses
    assert sorted(node.leased()) == sorted((*facts.addresses, *here.facts.addresses))
    with here.connected():
        node.woken.clear()
        await here.look()
    assert node.woken == []


async def test_a_link_that_is_deleted_on_the_node_s_side_is_made_anew(node: OwnNode) -> None:
    here = await pair(node)
    uid = here.published.ref.uid
    attached = here.agent.upkeep.attachments.get(uid)
    assert attached is not None
    run("ip", "link", "delete", attached.port)
    await here.look()
    assert node.woken == [uid]
    here.facts = await here.agent.sandbox.attach(here.published)
    assert tuple(node.addresses(uid)) == here.facts.addresses
    assert here.port_leads_in()
    for plan in (here.published, here.plain):
        await here.agent.sandbox.remove(plan.ref)
    assert node.traces() == []


async def test_a_bridge_that_was_deleted_is_made_anew_with_everybody_on_it(node: OwnNode) -> None:
    here = await pair(node)
    run("ip", "link", "delete", BRIDGE)
    await here.look()
    both = {here.published.ref.uid, here.plain.ref.uid}
    assert set(node.woken) == both
    assert {await here.damage(uid) for uid in both} == {f"bridge {BRIDGE} is gone"}
    here.facts = await here.agent.sandbox.attach(here.published)
    await here.agent.sandbox.attach(here.plain)
    assert here.port_leads_in()
    with here.connected():
        node.woken.clear()
        await here.look()
    assert node.woken == []


@pytest.mark.parametrize("change", [("nomaster",), ("down",)], ids=["taken off the bridge", "down"])
async def test_a_link_that_leads_nowhere_is_seen_from_the_node_s_side(node: OwnNode, change: tuple[str, ...]) -> None:
    here = await pair(node)
    uid = here.published.ref.uid
    attached = here.agent.upkeep.attachments.get(uid)
    assert attached is not None
    run("ip", "link", "set", attached.port, *change)
    await here.look()
    assert node.woken == [uid]
    here.facts = await here.agent.sandbox.attach(here.published)
    assert here.port_leads_in()


@pytest.mark.parametrize(
    "change",
    [("link", "set", BRIDGE, "down"), ("address", "flush", "dev", BRIDGE, "scope", "global")],
    ids=["down", "without its address"],
)
async def test_a_bridge_that_was_changed_is_mended_by_one_of_those_on_it(
    node: OwnNode, change: tuple[str, ...]
) -> None:
    here = await pair(node)
    run("ip", *change)
    await here.look()
    (uid,) = node.woken
    plan = here.published if uid == here.published.ref.uid else here.plain
    facts = await here.agent.sandbox.attach(plan)
    here.facts = facts if plan is here.published else here.facts
    assert here.port_leads_in()
    node.woken.clear()
    await here.look()
    assert node.woken == []


@pytest.mark.parametrize(
    "change",
    [
        ("ip", "link", "set", BRIDGE, "down"),
        ("ip", "address", "flush", "dev", BRIDGE, "scope", "global"),
        ("iptables", "-t", "nat", "-F", "PREROUTING"),
        ("iptables", "-F", "FORWARD"),
    ],
    ids=["bridge down", "bridge without its address", "way to ports", "way to accepted"],
)
async def test_what_everybody_lost_is_told_to_another_where_who_was_told_does_not_mend_it(
    node: OwnNode, change: tuple[str, ...]
) -> None:
    """As one that is stopped does not: it has a network, and nobody repairs it before it runs again."""
    node.write(bridge(), PORTMAP, FIREWALL)
    agent, plans = await node.agent(), {plan.ref.uid: plan for plan in (node.plan(tcp(7001)), node.plan(tcp(7002)))}
    for plan in plans.values():
        await agent.sandbox.create(plan)
        await agent.sandbox.attach(plan)
    run(*change)
    for told in (1, 2, 2):
        assert await agent.upkeep.look() == []
        assert len(set(node.woken)) == len(node.woken) == told
    stopped, running = node.woken
    await agent.sandbox.attach(plans[running])
    assert await agent.upkeep.look() == []
    assert node.woken == [stopped, running]
    assert node.answers(running, plans[running].ports[0].host_port)
    assert "-j CNI-FORWARD" in run("iptables", "-S", "FORWARD")


async def test_a_bridge_that_is_lost_is_told_of_while_somebody_s_link_is_off_it_all_the_time(node: OwnNode) -> None:
    here = await pair(node)
    run("ip", "link", "delete", BRIDGE)
    await here.look()
    here.facts = await here.agent.sandbox.attach(here.published)
    await here.look()
    assert "is no port of bridge" in await here.damage(here.plain.ref.uid)
    node.woken.clear()
    run("ip", "link", "set", BRIDGE, "down")
    await here.look()
    assert node.woken == [here.published.ref.uid]
    here.facts = await here.agent.sandbox.attach(here.published)
    assert here.port_leads_in()


async def test_a_bridge_that_cannot_be_looked_at_keeps_no_other_damage_from_being_told(node: OwnNode) -> None:
    here = await pair(node)
    uid = here.plain.ref.uid
    run("ip", "link", "delete", BRIDGE)
    run("ip", "link", "add", BRIDGE, "type", "ifb")
    node.inside(uid, "ip", "link", "set", "eth0", "down")
    (failure,) = await here.agent.upkeep.look()
    assert "of kind ifb" in str(failure)
    assert node.woken == [uid]
    assert await here.damage(uid) == "interface eth0 is down"


async def test_a_way_out_that_was_lost_comes_back(node: OwnNode) -> None:
    here = await pair(node)
    uid = here.plain.ref.uid
    node.inside(uid, "ip", "route", "delete", "default")
    await here.look()
    assert "default route of IPv4" in await here.damage(uid)
    await here.agent.sandbox.attach(here.plain)
    assert "default" in node.inside(uid, "ip", "route")


@pytest.mark.parametrize("flushed", [("-F",), ("-F", "FORWARD"), ("-F", "CNI-FORWARD")], ids=["all", "hook", "own"])
async def test_rules_of_the_firewall_plugin_come_back_for_everybody_and_connections_stay(
    node: OwnNode, flushed: tuple[str, ...]
) -> None:
    here = await pair(node, bridge(), PORTMAP, FIREWALL)
    before = sorted(node.traces())
    with here.connected():
        run("iptables", *flushed)
        await here.look()
        assert node.woken
        for plan in (here.published, here.plain):
            await here.agent.sandbox.attach(plan)
        node.woken.clear()
        await here.look()
        assert node.woken == []
    assert sorted(node.traces()) == before
    rules = run("iptables-save", "-t", "filter")
    assert "-j CNI-FORWARD" in rules
    assert all(f"-A CNI-FORWARD -s {address}/32 -j ACCEPT" in rules for address in here.facts.addresses)


async def test_a_lost_rule_that_leads_to_ports_comes_back(node: OwnNode) -> None:
    here = await pair(node)
    run("iptables", "-t", "nat", "-F", "PREROUTING")
    await here.look()
    assert node.woken == [here.published.ref.uid]
    await here.agent.sandbox.attach(here.published)
    assert "-j CNI-HOSTPORT-DNAT" in run("iptables", "-t", "nat", "-S", "PREROUTING")


async def test_a_lost_rule_of_one_port_comes_back_although_another_rule_names_the_runtime(node: OwnNode) -> None:
    here = await pair(node, bridge(ipMasq=True), PORTMAP)
    assert here.published.ref.uid in run("iptables", "-t", "nat", "-S", "POSTROUTING")
    await here.look()
    assert node.woken == []
    run("iptables", "-t", "nat", "-F", "CNI-HOSTPORT-DNAT")
    await here.look()
    assert node.woken == [here.published.ref.uid]
    assert await here.agent.sandbox.attach(here.published) == here.facts
    assert here.port_leads_in()


@pytest.mark.parametrize(
    "change", [("promisc", "on"), ("address", "02:00:00:00:89:01")], ids=["listened to", "with another MAC"]
)
async def test_flushed_port_rules_of_a_changed_bridge_come_back_and_whoever_is_connected_stays_so(
    node: OwnNode, change: tuple[str, ...]
) -> None:
    here = await pair(node)
    run("ip", "link", "set", BRIDGE, *change)
    with here.connected():
        run("iptables", "-t", "nat", "-F")
        await here.look()
        assert node.woken == [here.published.ref.uid]
        assert "rules-missing" in await here.damage(here.published.ref.uid)
        assert await here.agent.sandbox.attach(here.published) == here.facts
        assert here.port_leads_in()


async def test_who_is_confirmed_is_not_asked_of_with_each_look_but_again_and_again(node: OwnNode) -> None:
    """A firewall plugin that has its rules elsewhere than in iptables, as with firewalld."""
    plugins = node.folder / "plugins"
    plugins.mkdir()
    refusal = json.dumps({"code": 999, "msg": "expected --source rule of firewalld not found"})
    script(
        plugins,
        "firewall",
        f"""printf '%s\\tfirewall\\n' $CNI_COMMAND >>$calls
case $CNI_COMMAND in
  ADD) tr -d '\\n' | sed 's/.*"prevResult":\\(.*\\)}}$/\\1/' ;;
  CHECK) [ ! -e {plugins}/lost ] || {{ echo '{refusal}'; exit 1; }} ;;
esac""",
    )
    node.plugins = (plugins, PLUGINS)
    here = await pair(node, bridge(), FIREWALL, PORTMAP)

    async def asked(looks: int) -> int:
        before = calls(plugins).count(("CHECK", "firewall"))
        for _ in range(looks):
            await here.look()
        return calls(plugins).count(("CHECK", "firewall")) - before

    assert await asked(1) == 2
    assert await asked(ASK_AGAIN_LOOKS - 1) == 0
    assert await asked(1) == 2
    here.facts = await here.agent.sandbox.attach(replace(here.published, ports=(tcp(7002),)))
    assert await asked(1) == 1, "what was changed since is not confirmed"
    (plugins / "lost").touch()
    assert node.woken == []
    assert await asked(ASK_AGAIN_LOOKS)
    assert set(node.woken) == {here.published.ref.uid, here.plain.ref.uid}


async def test_flushed_port_rules_come_back_where_the_network_allows_no_check(node: OwnNode) -> None:
    node.write(disableCheck=True)
    agent, published = await node.agent(), node.plan(tcp(7001))
    await agent.sandbox.create(published)
    here = Pair(node, agent, published, published, await agent.sandbox.attach(published))
    run("iptables", "-t", "nat", "-F")
    await here.look()
    assert node.woken == [published.ref.uid]
    assert await agent.sandbox.attach(published) == here.facts
    assert here.port_leads_in()


async def test_a_plugin_that_cannot_tell_does_not_cost_anybody_the_network(node: OwnNode) -> None:
    """The rules are gone and portmap is, too: nothing can be repaired now, and what works is left alone."""
    here = await pair(node)
    without = node.folder / "plugins"
    without.mkdir()
    for name in ("bridge", "host-local"):
        (without / name).symlink_to(node.plugins[0] / name)
    node.plugins = (without,)
    here.agent = await node.agent()
    run("iptables", "-t", "nat", "-F")
    with here.connected():
        await here.look()
    assert node.woken == []


async def test_a_subnet_that_is_none_is_told_and_ends_nothing(node: OwnNode) -> None:
    node.write(bridge("10.89.0.0/33"))
    agent = await node.agent()
    for _ in range(2):
        (told,) = await agent.upkeep.go_round(sweep=True)
        assert "10.89.0.0/33" in told
    node.write()
    assert await agent.upkeep.go_round(sweep=True) == frozenset()


async def test_what_others_have_on_the_same_network_is_never_taken(node: OwnNode) -> None:
    """A Pod, and a runtime of another installation: of neither has this agent ever heard."""
    here = await pair(node, bridge(), PORTMAP, FIREWALL)
    pod, other = "c" * 64, ContainerIds.of(InstallationId("another")).id(here.published.ref.uid)
    for container, address in ((pod, "10.89.0.50"), (other, "10.89.0.51")):
        (node.leases / "agents" / address).write_text(f"{container}\r\neth0")
        comment = f'dnat name: "agents" id: "{container}"'
        run("iptables", "-t", "nat", "-A", "CNI-HOSTPORT-DNAT", "-m", "comment", "--comment", comment, "-j", "RETURN")
        run("iptables", "-A", "CNI-FORWARD", "-s", f"{address}/32", "-j", "ACCEPT")
    before = sorted(node.traces())
    rules = [line for line in run("iptables-save").splitlines() if line.startswith("-A")]
    for _ in range(3):
        assert await here.agent.upkeep.sweep(node.network()) == []
    assert sorted(node.traces()) == before
    assert [line for line in run("iptables-save").splitlines() if line.startswith("-A")] == rules


async def test_after_a_reboot_everything_is_made_anew_and_addresses_of_before_are_freed(node: OwnNode) -> None:
    here = await pair(node)
    node.reboot()
    assert len(node.leased()) == 2, "the folder of addresses is one that outlives a reboot"
    here.agent = await node.agent()
    sandbox = here.agent.sandbox
    assert await sandbox.observe(here.published.ref) == Absent()
    assert list(await sandbox.inventory()) == []
    node.known.discard(here.plain.ref.uid)
    await sandbox.create(here.published)
    here.facts = await sandbox.attach(here.published)
    assert here.port_leads_in()
    for _ in range(2):
        assert await here.agent.upkeep.sweep(node.network()) == []
    assert node.leased() == list(here.facts.addresses)
    await sandbox.remove(here.published.ref)
    assert node.traces() == []


async def test_an_address_that_a_new_namespace_frees_is_nobody_s_for_the_firewall_either(node: OwnNode) -> None:
    here = await pair(node)
    uid, address = here.plain.ref.uid, node.addresses(here.plain.ref.uid)[0]
    assert any(address in element for element in node.elements())
    netns.remove(node.netns(uid))
    await here.agent.sandbox.create(here.plain)
    assert address not in node.leased()
    assert [element for element in node.elements() if address in element] == []
    assert await here.agent.sandbox.attach(here.plain)
    assert any(node.addresses(uid)[0] in element for element in node.elements())


async def test_a_namespace_that_lost_its_name_gets_it_back_from_the_process_in_it(node: OwnNode) -> None:
    here = await pair(node)
    uid = here.published.ref.uid
    before = sorted(node.traces())
    with living_in(node, uid) as process, here.connected():
        run("umount", str(node.netns(uid)))
        assert await here.agent.sandbox.observe(here.published.ref) == Absent()
        adopting = SandboxPlan(here.published.ref, here.published.spec, here.published.ports, pid=process.pid)
        assert await here.agent.sandbox.create(adopting) == here.facts
    assert sorted(node.traces()) == before


async def test_what_nobody_has_goes_on_the_second_look_and_others_keep_theirs(node: OwnNode) -> None:
    here = await pair(node, bridge(ipMasq=True), PORTMAP, {"type": "firewall"})
    other = await another_network(node)
    theirs = of_second(other)
    node.known.discard(here.published.ref.uid)
    run("ip", "link", "add", "vethcafe0123", "type", "veth", "peer", "name", "half1")
    run("ip", "link", "set", "vethcafe0123", "master", BRIDGE)
    before = sorted(node.traces())
    assert await here.agent.upkeep.sweep(node.network()) == []
    assert sorted(node.traces()) == before, "seen once is not enough"
    assert await here.agent.upkeep.sweep(node.network()) == []
    left = node.traces()
    assert not [trace for trace in left if here.published.ref.uid in trace or here.facts.addresses[0] in trace]
    assert not [trace for trace in left if "half" in trace or "cafe" in trace]
    assert len(node.leased()) == 1
    assert of_second(other) == theirs


async def test_what_is_left_of_a_record_that_was_lost_is_swept(node: OwnNode) -> None:
    here = await pair(node, bridge(ipMasq=True), PORTMAP, {"type": "firewall"})
    uid = here.published.ref.uid
    node.known.discard(uid)
    for part in (f"results/agents-{node.container(uid)}-eth0", f"attached/{uid}"):
        (node.run_dir / "cni" / part).unlink()
    here.agent = await node.agent()
    await here.look()
    for _ in range(4):
        assert await here.agent.upkeep.sweep(node.network()) == []
    left = node.traces()
    assert not [trace for trace in left if uid in trace or here.facts.addresses[0] in trace]
    assert len([trace for trace in left if trace.startswith("link ")]) == 1
    assert not [line for line in run("iptables-save").splitlines() if here.facts.addresses[0] in line]


async def test_a_namespace_that_somebody_lives_in_is_nobody_s_to_take(node: OwnNode) -> None:
    here = await pair(node)
    uid = here.published.ref.uid
    node.known.discard(uid)
    before = sorted(node.traces())
    with living_in(node, uid):
        for _ in range(3):
            assert await here.agent.upkeep.sweep(node.network()) == []
        assert sorted(node.traces()) == before
    assert await here.agent.upkeep.sweep(node.network()) == []
    assert not [trace for trace in node.traces() if uid in trace]


@contextmanager
def living_in(node: OwnNode, uid: Uid) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        ["nsenter", f"--net={node.netns(uid)}", "sh", "-c", "echo && exec sleep 600"], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.read(1) == b"\n"
            yield process
        finally:
            process.kill()


async def another_network(node: OwnNode) -> OwnNode:
    """Of somebody else on the same node, with a runtime that this node's agent has never heard of."""
    folder = node.folder / "second"
    folder.mkdir()
    other = OwnNode(folder)
    first = bridge("10.91.0.0/24", bridge="second0", ipMasq=True)
    other.write(first, PORTMAP, {"type": "firewall"}, name="second")
    agent, plan = await other.agent(), other.plan(tcp(7002))
    await agent.sandbox.create(plan)
    await agent.sandbox.attach(plan)
    return other


def of_second(other: OwnNode) -> list[str]:
    """Files, rules and links of the other network, and what the firewall plugin lets pass for it."""
    files = [trace for trace in other.traces() if trace.startswith(("address ", "file "))]
    rules = [line for line in run("iptables-save").splitlines() if '\\"second\\"' in line or SECOND_ADDRESS in line]
    assert files
    assert len(rules) > 3
    return [*files, *rules, *run("ip", "-br", "link", "show", "master", "second0").splitlines()]
