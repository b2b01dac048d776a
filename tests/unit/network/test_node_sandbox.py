"""Which of its two networks a node gives to a runtime, and which one it goes on with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from tests.fakes.sandbox import FakeSandbox, SandboxState
from tests.property.worlds import REF

from perdure.api.conditions import Reason
from perdure.api.network import Network, NetworkMode, PortPolicy, RuntimePort
from perdure.api.runtime import RuntimeSpec
from perdure.network.cni_sandbox import CniSandbox
from perdure.network.node_sandbox import NodeSandbox
from perdure.network.none import LoopbackSandbox
from perdure.plan.certainty import Absent, Present
from perdure.reconcile.ports.errors import SandboxFailed
from perdure.reconcile.ports.sandbox import SandboxPlan

GAME = RuntimePort(name="game", container_port=7777)
INSIDE = RuntimePort(name="inside", container_port=80, policy=PortPolicy.NONE)


class Networked(FakeSandbox):
    """A node's networks, as far as `NodeSandbox` asks; `configured` is what an administrator does."""

    settings = SimpleNamespace(configuration_dir=Path("/etc/cni/net.d"))

    def __init__(self, state: SandboxState) -> None:
        super().__init__(state, has_network=True)
        self.configured = True

    async def is_configured(self) -> bool:
        return self.configured


class Node:
    def __init__(self) -> None:
        self.networked, self.alone = SandboxState(), SandboxState()
        self.cni = Networked(self.networked)
        self.sandbox = NodeSandbox(cast(LoopbackSandbox, FakeSandbox(self.alone)), cast(CniSandbox, self.cni))

    async def create(self, mode: NetworkMode | None, *ports: RuntimePort) -> SandboxPlan:
        plan = SandboxPlan(REF, RuntimeSpec(image="any", network=Network(mode=mode), ports=ports))
        await self.sandbox.create(plan)
        return plan

    def made(self) -> tuple[int, int]:
        return len(self.networked.made), len(self.alone.made)


@pytest.mark.parametrize(
    ("configured", "mode", "made"),
    [
        (True, None, (1, 0)),
        (True, NetworkMode.CNI, (1, 0)),
        (True, NetworkMode.NONE, (0, 1)),
        (False, None, (0, 1)),
        (False, NetworkMode.NONE, (0, 1)),
        (False, NetworkMode.CNI, (1, 0)),
    ],
)
async def test_a_runtime_gets_what_it_asks_for_and_else_what_the_node_can(
    configured: bool, mode: NetworkMode | None, made: tuple[int, int]
) -> None:
    node = Node()
    node.cni.configured = configured
    await node.create(mode)
    assert node.made() == made
    assert list(await node.sandbox.inventory()) == [REF.uid]


@pytest.mark.parametrize("mode", [None, NetworkMode.NONE])
async def test_ports_that_nothing_can_lead_in_are_refused_before_anything_is_made(mode: NetworkMode | None) -> None:
    node = Node()
    node.cni.configured = False
    with pytest.raises(SandboxFailed, match=r"game.*/etc/cni/net\.d") as caught:
        await node.create(mode, GAME, INSIDE)
    assert caught.value.reason is Reason.NO_CNI_CONFIGURATION
    assert node.made() == (0, 0)


async def test_ports_that_stay_inside_need_no_network() -> None:
    node = Node()
    await node.create(NetworkMode.NONE, INSIDE)
    assert node.made() == (0, 1)


async def test_what_was_made_is_gone_on_with_whatever_the_node_can_by_now() -> None:
    node = Node()
    node.cni.configured = False
    plan = await node.create(None)
    node.cni.configured = True
    assert (await node.sandbox.attach(plan)).mode is NetworkMode.NONE
    seen = await node.sandbox.observe(REF)
    assert isinstance(seen, Present)
    assert seen.it.mode is NetworkMode.NONE


async def test_both_are_taken_away_whichever_there_is() -> None:
    node = Node()
    await node.create(NetworkMode.CNI)
    await node.create(NetworkMode.NONE)
    assert node.made() == (1, 1)
    for _ in range(2):
        await node.sandbox.remove(REF)
        assert node.made() == (0, 0)
    assert await node.sandbox.observe(REF) == Absent()
