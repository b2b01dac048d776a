"""The node's configuration changes, or goes, while runtimes are attached: those who run stay as they are, isolated, masqueraded,
reached by their ports; those who come get what is configured now; and what nobody is on any more leaves no table."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from tests.integration.network.own_node import BRIDGE, NAME, PORTMAP, OwnNode, bridge, run, socket_in, tcp

from perdure.cli.networks import Networks
from perdure.plan.world import SandboxFacts
from perdure.reconcile.ports.sandbox import SandboxPlan

pytestmark = pytest.mark.root

NEW_SUBNET = "10.99.0.0/24"
SILENCE_SECONDS = 0.5
"""For what must not answer: within one machine an answer takes less than a millisecond."""

BRIDGES = {
    "another bridge and subnet": (bridge(NEW_SUBNET, bridge="other0"), NAME, {BRIDGE, "other0"}),
    "another name": (bridge(), "games", {BRIDGE}),
    "another name, bridge and subnet": (bridge(NEW_SUBNET, bridge="other0"), "games", {BRIDGE, "other0"}),
}


@dataclass
class Attached:
    plan: SandboxPlan
    facts: SandboxFacts


@dataclass
class Household:
    """`old` with a port and `kin` of one namespace, `stranger` of another, attached before the change."""

    node: OwnNode
    agent: Networks
    old: Attached
    kin: Attached
    stranger: Attached

    def reaches(self, source: Attached, target: Attached) -> bool:
        address = target.facts.addresses[0]
        with (
            self.node.listen(target.plan.ref.uid, address, 81),
            socket_in(self.node.netns(source.plan.ref.uid)) as client,
        ):
            client.settimeout(SILENCE_SECONDS)
            try:
                client.connect((address, 81))
            except OSError:
                return False
            return True

    def is_isolated(self, newcomer: Attached) -> bool:
        return (
            self.reaches(self.kin, self.old)
            and not self.reaches(self.stranger, self.old)
            and not self.reaches(newcomer, self.old)
            and not self.reaches(self.old, newcomer)
        )


async def attach(agent: Networks, plan: SandboxPlan) -> Attached:
    await agent.sandbox.create(plan)
    return Attached(plan, await agent.sandbox.attach(plan))


async def household(node: OwnNode) -> Household:
    node.write()
    agent, old = await node.agent(), node.plan(tcp(7001))
    kin, stranger = node.plan(of=old.ref), node.plan()
    return Household(node, agent, await attach(agent, old), await attach(agent, kin), await attach(agent, stranger))


def masqueraded() -> set[str]:
    """Links that what leaves them is masqueraded for, according to our own tables."""
    lines = run("nft", "list", "ruleset").splitlines()
    return {line.split('"')[1] for line in lines if line.strip().startswith("oifname !=") and "masquerade" in line}


def tables() -> int:
    return sum(line.split()[2].startswith("perdure-") for line in run("nft", "list", "tables").splitlines())


@pytest.mark.parametrize("change", BRIDGES)
async def test_whoever_runs_and_whoever_comes_stay_isolated_whatever_is_configured(node: OwnNode, change: str) -> None:
    first, name, bridges = BRIDGES[change]
    here = await household(node)
    node.write(first, PORTMAP, name=name)
    newcomer = await attach(here.agent, node.plan(tcp(7005)))
    everybody = (here.old, here.kin, here.stranger, newcomer)
    assert len({address for one in everybody for address in one.facts.addresses}) == len(everybody)
    assert here.is_isolated(newcomer)
    assert (masqueraded(), tables()) == (bridges, 2 * len(bridges))
    (node.configurations / "10-agents.conflist").unlink()
    for restarted in (False, True):
        run("nft", "flush", "ruleset")
        if restarted:
            here.agent = await node.agent()
        await here.agent.upkeep.look()
        assert set(node.woken) == {here.old.plan.ref.uid, newcomer.plan.ref.uid}, "their port rules are gone, too"
        for one in (here.old, newcomer):
            assert await here.agent.sandbox.attach(one.plan) == one.facts
            assert node.led_in(one.plan.ref.uid) == {one.plan.ports[0].host_port}
        assert here.is_isolated(newcomer)
        assert (masqueraded(), tables()) == (bridges, 2 * len(bridges))
        node.woken.clear()
    moved = SandboxPlan(here.old.plan.ref, here.old.plan.spec, (tcp(7002),))
    assert (await here.agent.sandbox.attach(moved)).addresses == here.old.facts.addresses
    assert node.led_in(moved.ref.uid) == {7002}
    for one in (here.old, here.kin, here.stranger):
        await here.agent.sandbox.remove(one.plan.ref)
    assert masqueraded() == {first["bridge"]}, "the old table goes with the last one who needs it"
    await here.agent.sandbox.remove(newcomer.plan.ref)
    assert tables() == 0
    assert [trace for trace in node.traces() if trace != "link other0"] == []


async def test_whoever_is_attached_anew_is_on_what_is_configured_now(node: OwnNode) -> None:
    here = await household(node)
    node.write(bridge(NEW_SUBNET, bridge="other0"), PORTMAP, name="games")
    node.inside(here.old.plan.ref.uid, "ip", "link", "delete", "eth0")
    await here.agent.upkeep.look()
    facts = await here.agent.sandbox.attach(here.old.plan)
    assert facts.addresses[0].startswith("10.99.0.")
    assert node.led_in(here.old.plan.ref.uid) == {7001}
    assert len(node.leased()) == 3, "its former address is free"
    assert not here.reaches(here.stranger, Attached(here.old.plan, facts))
    assert not [line for line in run("iptables-save").splitlines() if here.old.facts.addresses[0] in line]
