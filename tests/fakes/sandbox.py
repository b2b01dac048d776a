"""Network namespaces in memory, for the crash matrix. What was made is in `SandboxState`, which outlives the agent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from tests.fakes.journal import Hook

from perdure.api.names import RuntimeRef, Uid
from perdure.api.network import NetworkMode, network_mode
from perdure.plan.certainty import Absent, Certain, Present
from perdure.plan.world import OWN_NAMESPACE, HostPort, SandboxFacts
from perdure.reconcile.ports.errors import PortHeld, PortTaken, SandboxFailed
from perdure.reconcile.ports.sandbox import SandboxPlan


@dataclass(slots=True)
class SandboxState:
    """What survives the process."""

    made: dict[Uid, SandboxFacts] = field(default_factory=dict)
    foreign_listeners: set[int] = field(default_factory=set)
    on_serve: Callable[[RuntimeRef, tuple[HostPort, ...]], None] | None = None
    """Called before ports lead into a runtime: the place where a test asks whose they are."""

    def free_address(self) -> str:
        taken = {address for facts in self.made.values() for address in facts.addresses}
        return next(address for number in count(1) if (address := f"10.0.0.{number}") not in taken)


class FakeSandbox:
    def __init__(self, state: SandboxState, on_call: Hook | None = None, *, has_network: bool = False) -> None:
        self._state = state
        self._has_network = has_network
        self._on_call = on_call

    async def observe(self, ref: RuntimeRef) -> Certain[SandboxFacts]:
        found = self._state.made.get(ref.uid)
        return Present(found) if found is not None else Absent()

    async def create(self, plan: SandboxPlan) -> SandboxFacts:
        if self._on_call is not None:
            self._on_call("sandbox.create", "before")
        mode = network_mode(plan.spec.network, node_has_cni=self._has_network)
        empty = SandboxFacts(f"/run/{mode.value}/{plan.ref.uid}", mode, attached=mode is NetworkMode.NONE)
        facts = self._state.made.setdefault(plan.ref.uid, empty)
        if self._on_call is not None:
            self._on_call("sandbox.create", "after")
        return facts

    async def ask_for_ports(self, plan: SandboxPlan) -> None:
        found = self._state.made.get(plan.ref.uid)
        known = found.ports if found is not None else ()
        others = {
            (port.protocol, port.host_port): uid
            for uid, facts in self._state.made.items()
            for port in facts.ports
            if uid != plan.ref.uid
        }
        for port in plan.ports:
            holder = others.get((port.protocol, port.host_port))
            if holder is not None:
                raise PortHeld(port.name, port.host_port, port.protocol, holder)
            if port not in known and port.host_port in self._state.foreign_listeners:
                raise PortTaken(port.name, port.host_port, port.protocol)

    async def attach(self, plan: SandboxPlan) -> SandboxFacts:
        found = self._state.made.get(plan.ref.uid)
        if found is None:
            raise SandboxFailed(f"{plan.ref} has no network namespace")
        if found.mode is NetworkMode.NONE:
            return found
        if self._on_call is not None:
            self._on_call("sandbox.attach", "before")
        await self.ask_for_ports(plan)
        if self._state.on_serve is not None:
            self._state.on_serve(plan.ref, plan.ports)
        address = found.addresses or (self._state.free_address(),)
        policy = plan.spec.network.policy or OWN_NAMESPACE
        whole = SandboxFacts(found.netns, found.mode, True, address, plan.ports, policy)
        self._state.made[plan.ref.uid] = whole
        if self._on_call is not None:
            self._on_call("sandbox.attach", "after")
        return whole

    async def remove(self, ref: RuntimeRef) -> None:
        if self._on_call is not None:
            self._on_call("sandbox.remove", "before")
        self._state.made.pop(ref.uid, None)
        if self._on_call is not None:
            self._on_call("sandbox.remove", "after")

    async def problem(self) -> SandboxFailed | None:
        return None

    async def inventory(self) -> Sequence[Uid]:
        return tuple(self._state.made)
