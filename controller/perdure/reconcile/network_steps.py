"""Steps on networks: the namespace, the network in it, the ports that lead to it. Called by the executor, and by a start
while the engine makes the task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import structlog

from perdure.api.conditions import Reason
from perdure.plan.allotment import wanted_ports
from perdure.plan.binding import Refused
from perdure.plan.ports import numbered_ports, numbers_of
from perdure.plan.world import HostPort, World
from perdure.reconcile.hands import Hands, Place, live
from perdure.reconcile.ports.errors import PortError, PortHeld, PortTaken
from perdure.reconcile.ports.sandbox import SandboxPlan

PORTS_TRIED = 16
"""How many numbers that foreign listeners hold are passed over in one start."""

log = structlog.get_logger(__name__)


class PortRefused(PortError):
    """The ledger gives no other number for a port."""


class NetworkSteps:
    def __init__(self, hands: Hands, place: Place) -> None:
        self._hands = hands
        self._place = place

    async def create(self, world: World, pid: int | None) -> None:
        await self._hands.sandbox.create(self._plan(world, {}, pid))

    async def repair(self, world: World, why: str) -> None:
        log.info("network_repaired", runtime=str(world.ref), uid=world.ref.uid, why=why)
        await self.attach(world)

    async def attach(self, world: World) -> None:
        """The network, with ports whose numbers never change again. Raises `PortError`."""
        plan = self._plan(world, {}, None)
        numbers, journalled = _numbers(plan), dict(self._hands.record(world.ref).host_ports)
        told = live(world).host_ports
        if any(journalled.get(name) != at or told.get(name) != at for name, at in numbers.items()):
            plan = await self._settle_ports(world)
        elif numbers.keys() != journalled.keys():
            # What is not asked for any more is another's soon: it must not come back with its name.
            await self._journal(world, numbers)
        await self._hands.sandbox.attach(plan)

    async def lead_out(self, world: World, kept: tuple[HostPort, ...]) -> None:
        """Nothing but `kept` leads into it any more; nothing new does, either: that comes with its start."""
        record, plan = self._hands.record(world.ref), self._plan(world, {}, None)
        log.info("ports_led_out", runtime=str(world.ref), uid=world.ref.uid, kept=[port.host_port for port in kept])
        asked = {port.name for port in wanted_ports(live(world).spec)}
        await self._journal(world, {name: at for name, at in record.host_ports if name in asked})
        await self._hands.sandbox.attach(replace(plan, ports=kept))

    async def _settle_ports(self, world: World) -> SandboxPlan:
        """Numbers that nobody else on the node listens on: in the ledger, then in the journal, and only then served."""
        others: dict[str, int] = {}
        for chances in reversed(range(PORTS_TRIED)):
            plan = self._plan(world, others, None)
            numbers = _numbers(plan)
            try:
                await self._hands.sandbox.ask_for_ports(plan)
            except PortTaken as taken:
                if chances == 0:
                    raise
                try:
                    others[taken.name] = await self._reserved_instead(world, taken.name, taken.number)
                except PortRefused as refused:
                    if isinstance(taken, PortHeld):
                        raise taken from refused  # it passes, and nobody has to end a program
                    raise
                continue
            if await self._hands.ledger.ports_published(world.ref, numbers):
                await self._journal(world, numbers)
                return plan
            # Whoever was here before us was killed with another number in the ledger, or the spec was edited since.
            for name, number in numbers.items():
                if not await self._hands.ledger.ports_published(world.ref, {name: number}):
                    others[name] = await self._reserved_instead(world, name, number)
        raise PortError(
            f"the ports of {world.ref} change as they are read; they are read again", reason=Reason.IN_PROGRESS
        )

    async def _reserved_instead(self, world: World, name: str, number: int) -> int:
        answer = await self._hands.ledger.replace_port(world.ref, self._place.node_name, name, number)
        if isinstance(answer, Refused):
            raise PortRefused(answer.message, reason=answer.reason)
        if answer is None:
            raise PortError(f"port {name} of {world.ref} is not reserved any more", reason=Reason.IN_PROGRESS)
        log.info("port_passed_over", runtime=str(world.ref), port=number, instead=answer)
        return answer

    async def _journal(self, world: World, numbers: Mapping[str, int]) -> None:
        record = self._hands.record(world.ref)
        published = tuple(sorted(numbers.items()))
        if record.host_ports != published:
            await self._hands.journal.commit(put=replace(record, host_ports=published))

    def _plan(self, world: World, others: dict[str, int], pid: int | None) -> SandboxPlan:
        runtime, record = live(world), self._hands.record(world.ref)
        numbers = dict(record.host_ports) | numbers_of(runtime, record) | others
        return SandboxPlan(world.ref, runtime.spec, numbered_ports(runtime, numbers), pid)


def _numbers(plan: SandboxPlan) -> dict[str, int]:
    return {port.name: port.host_port for port in plan.ports}
