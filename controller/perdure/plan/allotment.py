"""Which numbers on a node the ports of a runtime have: pure decisions, taken by the ledgers inside their transactions.

A number belongs to one runtime for each transport. What a runtime has it keeps for as long as it is bound and asks for
it; what is new is drawn from a range in turn, so that a number that was given back is not somebody else's at once.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from perdure.api.conditions import Reason
from perdure.api.names import NodeName, Uid
from perdure.api.network import PortPolicy, PortProtocol, RuntimePort
from perdure.api.runtime import Runtime, RuntimeSpec
from perdure.plan.binding import Refused


class Transport(StrEnum):
    TCP = "TCP"
    UDP = "UDP"


@dataclass(frozen=True, slots=True)
class PortRange:
    """What Dynamic ports are drawn from; both ends belong to it."""

    first: int
    last: int

    def after(self, latest: int) -> Iterator[int]:
        """Every number of the range once, beginning behind `latest` (which may be outside of it)."""
        start = max(self.first, min(latest, self.last) + 1)
        yield from range(start, self.last + 1)
        yield from range(self.first, start)

    def __contains__(self, number: int) -> bool:
        return self.first <= number <= self.last

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


DEFAULT_RANGE = PortRange(7000, 8000)


@dataclass(frozen=True, slots=True, order=True)
class NodePort:
    """One number on a node, for one transport."""

    transport: Transport
    number: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """For which port of its runtime a number is reserved."""

    name: str
    static: bool


@dataclass(frozen=True, slots=True)
class PortDemand:
    """All that a runtime wants of a node; what it has beside that is given back."""

    ports: tuple[RuntimePort, ...]
    within: PortRange = DEFAULT_RANGE


@dataclass(frozen=True, slots=True)
class NodePorts:
    """What is reserved on one node, as one runtime sees it."""

    mine: Mapping[NodePort, Reservation]
    others: Mapping[NodePort, Uid]
    latest: int
    """The number that was drawn last; 0: none was."""
    published: frozenset[str] = frozenset()
    """Names of ports of this runtime whose number somebody may know."""

    def number_of(self, name: str) -> int | None:
        """What a port of this runtime has."""
        return next((at.number for at, reservation in self.mine.items() if reservation.name == name), None)


@dataclass(frozen=True, slots=True)
class Allotment:
    """What is to be written, and the outcome."""

    put: Mapping[NodePort, Reservation]
    drop: frozenset[NodePort]
    latest: int
    numbers: tuple[tuple[str, int], ...]
    """(name of the port, number), by name."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A number that was asked for is another's; `by` is None where this runtime itself has it for another port."""

    port: RuntimePort
    at: NodePort
    by: Uid | None


@dataclass(frozen=True, slots=True)
class Exhausted:
    """Nothing in the range is free for this port."""

    port: RuntimePort


def refused_by_pod_security(spec: RuntimeSpec, enforced: str, within: PortRange) -> Refused | None:
    """Pod Security from `baseline` on forbids Pods the node's ports but for those that the cluster's administrator lists
    (https://kubernetes.io/docs/concepts/security/pod-security-standards): here these are the range."""
    if enforced not in ("baseline", "restricted"):
        return None
    for port in spec.ports:
        if port.host_port is not None and port.host_port not in within:
            return Refused(
                Reason.POD_SECURITY,
                f"port {port.name} asks for number {port.host_port} of the node, and its namespace enforces Pod Security "
                f"{enforced}: there only numbers of {within} (--port-range of the controller) are given; ask for one of "
                "them, or for a Dynamic port",
            )
    return None


def transports(protocol: PortProtocol) -> tuple[Transport, ...]:
    """What a port of this protocol needs its number for."""
    match protocol:
        case PortProtocol.TCP:
            return (Transport.TCP,)
        case PortProtocol.UDP:
            return (Transport.UDP,)
        case PortProtocol.TCPUDP:
            return (Transport.TCP, Transport.UDP)
        case _:
            assert_never(protocol)


def wanted_ports(spec: RuntimeSpec) -> tuple[RuntimePort, ...]:
    """The ports that need a number on the node. A Static one without its number, which the CRD refuses, needs none."""
    return tuple(
        port
        for port in spec.ports
        if port.policy is PortPolicy.DYNAMIC or (port.policy is PortPolicy.STATIC and port.host_port is not None)
    )


def are_published(runtime: Runtime) -> bool:
    """Whether the published numbers are those that the spec asks for, and those that its node serves.

    They differ after an edit, when the annotation was lost, and when the node's agent had to take another number.
    """
    published = runtime.host_ports
    wanted = {port.name: port for port in wanted_ports(runtime.spec)}
    if wanted.keys() != published.keys():
        return False
    if any(port.policy is PortPolicy.STATIC and published[name] != port.host_port for name, port in wanted.items()):
        return False
    served = {port.name: port.host_port for port in runtime.status.ports if port.host_port is not None}
    return all(published.get(name, number) == number for name, number in served.items())


def allot(demand: PortDemand, node: NodePorts) -> Allotment | Taken | Exhausted:
    """Numbers for all ports of a runtime, or why one of them cannot have any; all or nothing."""
    claimed: dict[NodePort, Uid | None] = dict(node.others)
    numbers: dict[str, int] = {}
    result: dict[NodePort, Reservation] = {}

    def claim(port: RuntimePort, number: int) -> None:
        numbers[port.name] = number
        for at in _slots(port, number):
            claimed[at] = None
            result[at] = Reservation(port.name, port.policy is PortPolicy.STATIC)

    fixed, fresh = [], []
    for port in demand.ports:
        number = node.number_of(port.name)
        if port.policy is PortPolicy.STATIC:
            fixed.append(port)
        elif number is not None and claimed.keys().isdisjoint(_slots(port, number)):
            claim(port, number)
        else:
            fresh.append(port)
    for port in fixed:
        assert port.host_port is not None, "wanted_ports leaves such a port out"
        for at in _slots(port, port.host_port):
            if at in claimed:
                return Taken(port, at, claimed[at])
        claim(port, port.host_port)
    latest = node.latest
    for port in fresh:
        drawn = _draw(transports(port.protocol), claimed, demand.within, latest)
        if drawn is None:
            return Exhausted(port)
        claim(port, drawn)
        latest = drawn
    put = {at: reservation for at, reservation in result.items() if node.mine.get(at) != reservation}
    return Allotment(put, frozenset(node.mine.keys() - result.keys()), latest, tuple(sorted(numbers.items())))


def redraw(name: str, taken: int, node: NodePorts, within: PortRange, on: NodeName) -> int | Refused | None:
    """Another number for a port whose number something on the node listens on that is not ours.

    The number that it has, if that is not `taken`: it was replaced already. None: the runtime has no such port.
    Refused: the number may be known to somebody, or was asked for, or there is no other.
    """
    own = {at: reservation for at, reservation in node.mine.items() if reservation.name == name}
    number = node.number_of(name)
    if number != taken:
        return number
    if any(reservation.static for reservation in own.values()) or name in node.published:
        why = "it was published and stays" if name in node.published else "its policy is Static"
        return Refused(
            Reason.PORT_TAKEN,
            f"port {name}: something that is no runtime listens on {taken} of node {on}, and {why}; end that, or take the "
            "port out of the spec and add it under another name",
        )
    drawn = _draw([at.transport for at in own], {*node.mine, *node.others}, within, node.latest)
    return refusal_of_exhausted(name, within, on) if drawn is None else drawn


def _slots(port: RuntimePort, number: int) -> tuple[NodePort, ...]:
    return tuple(NodePort(transport, number) for transport in transports(port.protocol))


def _draw(needs: Collection[Transport], claimed: Container[NodePort], within: PortRange, latest: int) -> int | None:
    """The next number that is free for all of `needs`."""
    for number in within.after(latest):
        if not any(NodePort(transport, number) in claimed for transport in needs):
            return number
    return None


def refusal_of_taken(taken: Taken, node: NodeName, holder: str | None) -> Refused:
    """`holder`: who has it, as people call it; None: nobody that is known by name."""
    by = "another port of this runtime" if taken.by is None else holder or f"the runtime with uid {taken.by}"
    return Refused(
        Reason.PORT_TAKEN,
        f"port {taken.port.name}: {taken.at.number}/{taken.at.transport} of node {node} is reserved by {by}; choose "
        "another hostPort, or policy Dynamic",
    )


def refusal_of_exhausted(name: str, within: PortRange, node: NodeName) -> Refused:
    return Refused(
        Reason.PORT_RANGE_EXHAUSTED,
        f"port {name}: every number of {within} is reserved on node {node}; delete what does not need its ports, or give "
        "the controller a wider --port-range",
    )
