"""The node's sandbox: a runtime with a network gets one from the CNI configuration, one without gets loopback alone.

Made by the composition roots, driven by the loop. Which of the two a runtime has is seen from what is there; which it gets
is the spec's word, and the node's where the spec says nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from perdure.api.conditions import Reason
from perdure.api.names import RuntimeRef, Uid
from perdure.api.network import NetworkMode, PortPolicy, network_mode
from perdure.network.cni_sandbox import CniSandbox
from perdure.network.none import LoopbackSandbox
from perdure.plan.certainty import Absent, Certain, Present
from perdure.plan.world import SandboxFacts
from perdure.reconcile.ports.errors import SandboxFailed
from perdure.reconcile.ports.sandbox import SandboxPlan


class NodeSandbox:
    """`perdure.reconcile.ports.sandbox.Sandbox`."""

    def __init__(self, loopback: LoopbackSandbox, cni: CniSandbox) -> None:
        self._loopback = loopback
        self._cni = cni

    async def observe(self, ref: RuntimeRef) -> Certain[SandboxFacts]:
        attached = await self._cni.observe(ref)
        return await self._loopback.observe(ref) if isinstance(attached, Absent) else attached

    async def create(self, plan: SandboxPlan) -> SandboxFacts:
        mode = await self._mode(plan)
        return await (self._cni if mode is NetworkMode.CNI else self._loopback).create(plan)

    async def ask_for_ports(self, plan: SandboxPlan) -> None:
        await self._cni.ask_for_ports(plan)

    async def attach(self, plan: SandboxPlan) -> SandboxFacts:
        there = await self._cni.observe(plan.ref)
        return await (self._cni if isinstance(there, Present) else self._loopback).attach(plan)

    async def remove(self, ref: RuntimeRef) -> None:
        await self._cni.remove(ref)
        await self._loopback.remove(ref)

    async def problem(self) -> SandboxFailed | None:
        return await self._cni.problem()

    async def inventory(self) -> Sequence[Uid]:
        found = await asyncio.gather(self._cni.inventory(), self._loopback.inventory())
        return tuple(sorted({uid for uids in found for uid in uids}))

    async def _mode(self, plan: SandboxPlan) -> NetworkMode:
        network = plan.spec.network
        # The node's configuration is read only where it decides.
        mode = network_mode(network, node_has_cni=network.mode is None and await self._cni.is_configured())
        ports = [port.name for port in plan.spec.ports if port.policy is not PortPolicy.NONE]
        if mode is NetworkMode.NONE and ports:
            raise SandboxFailed(
                f"{plan.ref} asks for ports on the node ({', '.join(ports)}), and the node has no network to lead them "
                f"into it: put a CNI configuration into {self._cni.settings.configuration_dir}",
                reason=Reason.NO_CNI_CONFIGURATION,
            )
        return mode
