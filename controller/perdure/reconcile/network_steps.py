"""Steps on networks: the namespace, the network in it, the ports that lead to it. Called by the executor, and by a start
while the engine makes the task."""

from __future__ import annotations

from dataclasses import replace

import structlog

from perdure.api.conditions import Reason
from perdure.plan.binding import Refused
from perdure.plan.ports import host_ports, numbers_of
from perdure.plan.world import World
from perdure.reconcile.hands import Hands, Place, live
from perdure.reconcile.ports.errors import PortError, PortTaken
from perdure.reconcile.ports.sandbox import SandboxPlan

PORTS_TRIED = 16
"""How many numbers that foreign listeners hold are passed over in one start."""

log = structlog.get_logger(__name__)


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
        wanted = {(port.name, port.host_port) for port in plan.ports}
        if not wanted <= set(self._hands.record(world.ref).host_ports):
            plan = await self._settle_ports(world)
        await self._hands.sandbox.attach(plan)

    async def _settle_ports(self, world: World) -> SandboxPlan:
        """Numbers that nobody else on the node listens on: in the ledger, then in the journal, and only then served."""
        others: dict[str, int] = {}
        for chances in reversed(range(PORTS_TRIED)):
            plan = self._plan(world, others, None)
            try:
                await self._hands.sandbox.ask_for_ports(plan)
            except PortTaken as taken:
                if chances == 0:
                    raise
                others[taken.name] = await self._another(world, taken)
            else:
                break
        numbers = {port.name: port.host_port for port in plan.ports}
        if not await self._hands.ledger.ports_published(world.ref, numbers):
            raise PortError(
                f"the ports of {world.ref} were given to others meanwhile; they are read again",
                reason=Reason.IN_PROGRESS,
            )
        record = replace(self._hands.record(world.ref), host_ports=tuple(sorted(numbers.items())))
        await self._hands.journal.commit(put=record)
        return plan

    async def _another(self, world: World, taken: PortTaken) -> int:
        answer = await self._hands.ledger.replace_port(world.ref, self._place.node_name, taken.name, taken.number)
        if isinstance(answer, Refused):
            raise PortError(answer.message, reason=answer.reason)
        if answer is None:
            raise PortError(f"port {taken.name} of {world.ref} is not reserved any more", reason=Reason.IN_PROGRESS)
        log.info("port_passed_over", runtime=str(world.ref), port=taken.number, instead=answer)
        return answer

    def _plan(self, world: World, others: dict[str, int], pid: int | None) -> SandboxPlan:
        runtime, record = live(world), self._hands.record(world.ref)
        ports = host_ports(runtime, numbers_of(runtime, record) | others) or ()
        return SandboxPlan(world.ref, runtime.spec, ports, pid)
