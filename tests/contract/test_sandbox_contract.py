"""What every `Sandbox` does, the fakes too: loopback alone, and networks from a CNI configuration. What the kernel shows of
it is asked of the real ones alone."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.engine_rig import new_ref
from tests.contract.sandbox_rig import FakeRig, LoopbackRig, NodeRig, SandboxRig
from tests.integration.network.own_node import own_node, tcp

from perdure.api.conditions import Reason
from perdure.api.names import RuntimeRef
from perdure.api.network import Network, NetworkMode, NetworkPeer, NetworkPolicy
from perdure.api.runtime import RuntimeSpec
from perdure.network import netns
from perdure.network.none import LoopbackSandbox
from perdure.plan.certainty import Absent, Present
from perdure.plan.world import HostPort, SandboxFacts
from perdure.reconcile.ports.errors import PortHeld, PortTaken, SandboxFailed
from perdure.reconcile.ports.sandbox import Sandbox, SandboxPlan

SPEC = RuntimeSpec(image="any")
ALLOWS_OTHERS = NetworkPolicy(allow_from=(NetworkPeer(namespace="others"),))

root = pytest.mark.root


@pytest.fixture
def loopback() -> Iterator[LoopbackRig]:
    path = Path(tempfile.mkdtemp(prefix="perdure-test-", dir="/run"))
    yield LoopbackRig(path)
    for name in netns.names(path / "netns"):
        netns.remove(path / "netns" / name)
    shutil.rmtree(path)


@pytest.fixture
def node() -> Iterator[NodeRig]:
    with own_node() as own:
        own.write()
        yield NodeRig(own)


def _rig(request: pytest.FixtureRequest) -> SandboxRig:
    match request.param:
        case "fake":
            return FakeRig(has_network=False)
        case "fake-network":
            return FakeRig(has_network=True)
        case real:
            rig: SandboxRig = request.getfixturevalue(real)
            return rig


@pytest.fixture(params=["fake", "fake-network", pytest.param("loopback", marks=root), pytest.param("node", marks=root)])
def anyone(request: pytest.FixtureRequest) -> SandboxRig:
    return _rig(request)


@pytest.fixture(params=["fake-network", pytest.param("node", marks=root)])
def networked(request: pytest.FixtureRequest) -> SandboxRig:
    return _rig(request)


def plan(ref: RuntimeRef, *ports: HostPort, policy: NetworkPolicy | None = None) -> SandboxPlan:
    return SandboxPlan(ref, RuntimeSpec(image="any", network=Network(policy=policy)), ports)


async def attached(sandbox: Sandbox, wanted: SandboxPlan) -> SandboxFacts:
    await sandbox.create(wanted)
    return await sandbox.attach(wanted)


def identity(path: str) -> int:
    """The inode of a namespace file: which namespace it is."""
    return Path(path).stat().st_ino


# ------------------------------------------------------------------------------------------ every sandbox


async def test_nothing_is_there_of_an_unknown_runtime(anyone: SandboxRig) -> None:
    sandbox = await anyone.sandbox()
    assert await sandbox.observe(new_ref()) == Absent()
    assert list(await sandbox.inventory()) == []


async def test_a_created_sandbox_is_seen_and_creating_it_again_keeps_it(anyone: SandboxRig) -> None:
    sandbox, ref = await anyone.sandbox(), new_ref()
    made = await sandbox.create(SandboxPlan(ref, SPEC))
    assert await sandbox.observe(ref) == Present(made)
    assert await sandbox.create(SandboxPlan(ref, SPEC)) == made
    assert await sandbox.observe(ref) == Present(made)
    await sandbox.remove(ref)


async def test_a_removed_sandbox_is_gone_and_may_be_removed_again(anyone: SandboxRig) -> None:
    sandbox, ref = await anyone.sandbox(), new_ref()
    await attached(sandbox, SandboxPlan(ref, SPEC))
    for _ in range(2):
        await sandbox.remove(ref)
        assert await sandbox.observe(ref) == Absent()


async def test_removing_one_sandbox_leaves_the_others(anyone: SandboxRig) -> None:
    sandbox, (going, staying) = await anyone.sandbox(), (new_ref(), new_ref())
    made = [await attached(sandbox, SandboxPlan(ref, SPEC)) for ref in (going, staying)]
    assert made[0].netns != made[1].netns
    await sandbox.remove(going)
    assert await sandbox.observe(staying) == Present(made[1])
    await sandbox.remove(staying)


async def test_the_inventory_names_every_runtime(anyone: SandboxRig) -> None:
    sandbox, refs = await anyone.sandbox(), [new_ref(), new_ref()]
    await sandbox.create(SandboxPlan(refs[0], SPEC))
    await attached(sandbox, SandboxPlan(refs[1], SPEC))
    assert sorted(await sandbox.inventory()) == sorted(ref.uid for ref in refs)
    for ref in refs:
        await sandbox.remove(ref)
    assert list(await sandbox.inventory()) == []


async def test_attaching_again_changes_nothing(anyone: SandboxRig) -> None:
    sandbox, ref = await anyone.sandbox(), new_ref()
    made = await attached(sandbox, SandboxPlan(ref, SPEC))
    assert made.attached
    assert await sandbox.attach(SandboxPlan(ref, SPEC)) == made
    assert await sandbox.observe(ref) == Present(made)


async def test_a_new_process_sees_what_the_one_before_made_and_removes_it(anyone: SandboxRig) -> None:
    ref, bare = new_ref(), new_ref()
    before = await anyone.sandbox()
    made = await attached(before, SandboxPlan(ref, SPEC))
    created = await before.create(SandboxPlan(bare, SPEC))
    sandbox = await anyone.sandbox()
    assert await sandbox.observe(ref) == Present(made)
    assert await sandbox.observe(bare) == Present(created)
    assert await sandbox.attach(SandboxPlan(ref, SPEC)) == made
    await sandbox.remove(ref)
    await sandbox.remove(bare)
    assert list(await sandbox.inventory()) == []


async def test_nothing_is_attached_to_a_namespace_that_is_gone(anyone: SandboxRig) -> None:
    sandbox, ref = await anyone.sandbox(), new_ref()
    with pytest.raises(SandboxFailed):
        await sandbox.attach(SandboxPlan(ref, SPEC))
    assert await sandbox.observe(ref) == Absent()


# ------------------------------------------------------------------------------------------ sandboxes with a network


async def test_a_network_is_there_only_once_it_is_attached(networked: SandboxRig) -> None:
    sandbox, ref = await networked.sandbox(), new_ref()
    created = await sandbox.create(plan(ref, tcp(7001)))
    assert (created.mode, created.attached, created.addresses, created.ports) == (NetworkMode.CNI, False, (), ())
    made = await sandbox.attach(plan(ref, tcp(7001)))
    assert (made.netns, made.attached, made.ports, made.damage) == (created.netns, True, (tcp(7001),), "")
    assert len(made.addresses) == 1
    assert await sandbox.observe(ref) == Present(made)


async def test_addresses_are_nobody_else_s_and_free_again_after_the_removal(networked: SandboxRig) -> None:
    sandbox, refs = await networked.sandbox(), [new_ref() for _ in range(3)]
    made = [await attached(sandbox, plan(ref)) for ref in refs]
    assert len({facts.addresses for facts in made}) == 3
    for ref in refs:
        await sandbox.remove(ref)
        assert await sandbox.observe(ref) == Absent()


async def test_a_runtime_that_wants_no_network_gets_loopback_alone(networked: SandboxRig) -> None:
    sandbox, ref = await networked.sandbox(), new_ref()
    made = await attached(sandbox, SandboxPlan(ref, RuntimeSpec(image="any", network=Network(mode=NetworkMode.NONE))))
    assert (made.mode, made.attached, made.addresses) == (NetworkMode.NONE, True, ())
    assert await sandbox.observe(ref) == Present(made)


async def test_other_ports_are_led_in_and_the_address_stays(networked: SandboxRig) -> None:
    sandbox, ref = await networked.sandbox(), new_ref()
    made = await attached(sandbox, plan(ref, tcp(7001)))
    for ports in ((tcp(7002), tcp(7003, "web")), (tcp(7002),), (), (tcp(7001),)):
        changed = await sandbox.attach(plan(ref, *ports))
        assert (changed.ports, changed.addresses) == (ports, made.addresses)
        assert await sandbox.observe(ref) == Present(changed)
        assert networked.led_in(ref.uid) == {port.host_port for port in ports}


async def test_another_policy_is_brought_in_and_the_address_stays(networked: SandboxRig) -> None:
    sandbox, ref = await networked.sandbox(), new_ref()
    made = await attached(sandbox, plan(ref))
    assert made.policy == NetworkPolicy()
    for policy in (ALLOWS_OTHERS, None):
        changed = await sandbox.attach(plan(ref, policy=policy))
        assert (changed.policy, changed.addresses) == (policy or NetworkPolicy(), made.addresses)
        assert await (await networked.sandbox()).observe(ref) == Present(changed)


async def test_a_port_that_another_program_has_is_told_before_anything_is_changed(networked: SandboxRig) -> None:
    sandbox, ref = await networked.sandbox(), new_ref()
    created = await sandbox.create(plan(ref, tcp(7001)))
    with networked.listen(7001):
        for asking in (sandbox.ask_for_ports, sandbox.attach):
            with pytest.raises(PortTaken) as caught:
                await asking(plan(ref, tcp(7001)))
            assert (caught.value.name, caught.value.number, caught.value.protocol) == ("game", 7001, "TCP")
        await sandbox.ask_for_ports(plan(ref, tcp(7002)))
    assert await sandbox.observe(ref) == Present(created)
    assert (await sandbox.attach(plan(ref, tcp(7001)))).ports == (tcp(7001),)


async def test_a_port_that_is_led_in_already_is_not_asked_for_again(networked: SandboxRig) -> None:
    sandbox, ref = await networked.sandbox(), new_ref()
    made = await attached(sandbox, plan(ref, tcp(7001)))
    with networked.listen(7001):
        await sandbox.ask_for_ports(plan(ref, tcp(7001)))
        assert await sandbox.attach(plan(ref, tcp(7001))) == made
        sandbox = await networked.sandbox()
        await sandbox.ask_for_ports(plan(ref, tcp(7001)))


async def test_a_number_that_still_leads_into_another_runtime_is_refused_until_it_does_not(
    networked: SandboxRig,
) -> None:
    sandbox, holder, other = await networked.sandbox(), new_ref(), new_ref()
    await attached(sandbox, plan(holder, tcp(7001), tcp(7002, "web")))
    plain = await attached(sandbox, plan(other))
    for again in (sandbox, await networked.sandbox()):
        for asking in (again.ask_for_ports, again.attach):
            with pytest.raises(PortHeld, match=r"7001/TCP .*still leads into") as caught:
                await asking(plan(other, tcp(7003, "free"), tcp(7001, "mine")))
            assert (caught.value.name, caught.value.number, caught.value.reason) == ("mine", 7001, Reason.PORT_TAKEN)
    assert await sandbox.observe(other) == Present(plain)
    assert networked.led_in(other.uid) == set()
    await sandbox.attach(plan(holder, tcp(7002, "web")))
    assert (await sandbox.attach(plan(other, tcp(7001, "mine")))).ports == (tcp(7001, "mine"),)
    assert (networked.led_in(holder.uid), networked.led_in(other.uid)) == ({7002}, {7001})
    await sandbox.remove(holder)
    assert (await sandbox.attach(plan(other, tcp(7002)))).ports == (tcp(7002),)


async def test_of_two_that_are_attached_at_once_one_gets_the_number(networked: SandboxRig) -> None:
    sandbox, refs = await networked.sandbox(), (new_ref(), new_ref())
    for ref in refs:
        await sandbox.create(plan(ref))
    outcomes = await asyncio.gather(*(sandbox.attach(plan(ref, tcp(7001))) for ref in refs), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["PortHeld", "SandboxFacts"]
    (served,) = (ref for ref, got in zip(refs, outcomes, strict=True) if isinstance(got, SandboxFacts))
    assert networked.led_in(served.uid) == {7001}


async def test_damage_is_seen_until_it_is_repaired_and_the_address_stays(networked: SandboxRig) -> None:
    sandbox, ref = await networked.sandbox(), new_ref()
    made = await attached(sandbox, plan(ref, tcp(7001)))
    networked.damage(ref.uid)
    damaged = await sandbox.observe(ref)
    assert isinstance(damaged, Present)
    assert damaged.it.damage == "rules are missing"
    assert await sandbox.attach(plan(ref, tcp(7001))) == made
    assert await sandbox.observe(ref) == Present(made)


# ------------------------------------------------------------------------------------------ the kernel


@root
async def test_a_sandbox_is_a_namespace_of_its_own_until_it_is_removed(loopback: LoopbackRig) -> None:
    sandbox, ref = LoopbackSandbox(loopback.run_dir), new_ref()
    made = await sandbox.create(SandboxPlan(ref, SPEC))
    first = identity(made.netns)
    await sandbox.create(SandboxPlan(ref, SPEC))
    assert identity(made.netns) == first != identity("/proc/self/ns/net")
    await sandbox.remove(ref)
    with pytest.raises(FileNotFoundError):
        identity(made.netns)


@root
async def test_sandboxes_are_apart_from_each_other(loopback: LoopbackRig) -> None:
    sandbox, refs = LoopbackSandbox(loopback.run_dir), [new_ref(), new_ref()]
    spaces = {identity((await sandbox.create(SandboxPlan(ref, SPEC))).netns) for ref in refs}
    assert len(spaces) == 2
    for ref in refs:
        await sandbox.remove(ref)


@root
async def test_the_network_that_is_told_is_the_kernel_s_and_nothing_is_left_of_it(node: NodeRig) -> None:
    sandbox, wanted = await node.sandbox(), node.node.plan(tcp(7001))
    made = await attached(sandbox, wanted)
    assert tuple(node.node.addresses(wanted.ref.uid)) == made.addresses
    assert any("--dport 7001" in trace for trace in node.node.traces())
    await sandbox.remove(wanted.ref)
    assert node.node.traces() == []
