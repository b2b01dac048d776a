"""Which ports of a node lead into a runtime, and what its status says of them. Pure; used by rules, steps and the status."""

from __future__ import annotations

from collections.abc import Mapping

from perdure.api.network import PortStatus
from perdure.api.runtime import Runtime
from perdure.plan.allotment import transports, wanted_ports
from perdure.plan.world import HostPort, Record, SandboxFacts


def numbers_of(runtime: Runtime, record: Record) -> dict[str, int]:
    """The node's ports by name: those that were published once stay, others are the controller's word."""
    numbers = dict(runtime.host_ports)
    numbers.update({name: number for name, number in record.host_ports if name in numbers})
    return numbers


def host_ports(runtime: Runtime, numbers: Mapping[str, int]) -> tuple[HostPort, ...] | None:
    """What the node is to lead into the runtime; None while a port has no number yet."""
    wanted: list[HostPort] = []
    for port in wanted_ports(runtime.spec):
        number = numbers.get(port.name)
        if number is None:
            return None
        for transport in transports(port.protocol):
            wanted.append(HostPort(port.name, transport.value, port.container_port, number))
    return tuple(wanted)


def shown_ports(runtime: Runtime, facts: SandboxFacts) -> tuple[PortStatus, ...]:
    """The ports of the spec as the node serves them; one that is not led in yet has no number."""
    numbers = {port.name: port.host_port for port in facts.ports}
    return tuple(
        PortStatus(
            name=port.name,
            protocol=port.protocol,
            container_port=port.container_port,
            host_port=numbers.get(port.name),
        )
        for port in runtime.spec.ports
    )
