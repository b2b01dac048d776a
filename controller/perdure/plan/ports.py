"""Which ports of a node lead into a runtime, and what its status says of them. Pure; used by rules, steps and the status."""

from __future__ import annotations

from collections.abc import Mapping

from perdure.api.network import PortPolicy, PortStatus
from perdure.api.runtime import Runtime
from perdure.plan.allotment import transports, wanted_ports
from perdure.plan.world import HostPort, Record, SandboxFacts


def numbers_of(runtime: Runtime, record: Record) -> dict[str, int]:
    """The node's ports by name: Dynamic ones that were published once stay, others are the controller's word.

    The number of a Static port is changed by nobody but the person who asks for it.
    """
    asked_for = {port.name for port in runtime.spec.ports if port.policy is PortPolicy.STATIC}
    numbers = dict(runtime.host_ports)
    numbers.update({name: at for name, at in record.host_ports if name in numbers and name not in asked_for})
    return numbers


def host_ports(runtime: Runtime, numbers: Mapping[str, int]) -> tuple[HostPort, ...] | None:
    """What the node is to lead into the runtime; None while a port has no number yet."""
    if any(port.name not in numbers for port in wanted_ports(runtime.spec)):
        return None
    return numbered_ports(runtime, numbers)


def numbered_ports(runtime: Runtime, numbers: Mapping[str, int]) -> tuple[HostPort, ...]:
    """The ports that the spec asks for and that have a number: one that waits for its own holds up no other."""
    return tuple(
        HostPort(port.name, transport.value, port.container_port, numbers[port.name])
        for port in wanted_ports(runtime.spec)
        if port.name in numbers
        for transport in transports(port.protocol)
    )


def still_wanted(runtime: Runtime, record: Record, facts: SandboxFacts) -> tuple[HostPort, ...]:
    """What of the served ports is asked for as it is. A number that the controller has not told (any more) is not another."""
    numbers = {port.name: port.host_port for port in facts.ports} | numbers_of(runtime, record)
    asked = {port.name: port.host_port for port in runtime.spec.ports if port.policy is PortPolicy.STATIC}
    numbers |= {name: number for name, number in asked.items() if number is not None}
    wanted = frozenset(numbered_ports(runtime, numbers))
    return tuple(port for port in facts.ports if port in wanted)


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
