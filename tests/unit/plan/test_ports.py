"""Which ports lead into a runtime under which numbers, and what its status says of them."""

from __future__ import annotations

import msgspec
import pytest
from tests.property.worlds import REF, Draw

from perdure.api.names import ANNOTATION_HOST_PORTS
from perdure.api.network import NetworkMode, PortPolicy, PortProtocol, PortStatus, RuntimePort, write_host_ports
from perdure.api.runtime import Runtime, RuntimeSpec
from perdure.plan.ports import host_ports, numbered_ports, numbers_of, shown_ports
from perdure.plan.world import HostPort, Record, SandboxFacts

GAME = RuntimePort(name="game", container_port=7777, protocol=PortProtocol.UDP)
BOTH = RuntimePort(name="both", container_port=27015, protocol=PortProtocol.TCPUDP)
RCON = RuntimePort(name="rcon", container_port=25575, policy=PortPolicy.STATIC, host_port=9000)
INSIDE = RuntimePort(name="inside", container_port=80, policy=PortPolicy.NONE)


def runtime(*ports: RuntimePort, told: dict[str, int] | None = None) -> Runtime:
    text = write_host_ports(told or {})
    return msgspec.structs.replace(
        Draw(1).runtime(terminating=False),
        spec=RuntimeSpec(image="any", ports=ports),
        annotations={ANNOTATION_HOST_PORTS: text} if text is not None else {},
    )


def record(**published: int) -> Record:
    return Record(ref=REF, host_ports=tuple(sorted(published.items())))


# ---------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("told", "published", "numbers"),
    [
        ({}, {}, {}),
        ({"game": 7000}, {}, {"game": 7000}),
        ({"game": 7000}, {"game": 7005}, {"game": 7005}),
        ({"rcon": 9000}, {"rcon": 9001}, {"rcon": 9000}),
        ({}, {"game": 7005}, {}),
        ({"game": 7000}, {"gone": 7005}, {"game": 7000}),
        ({"game": 7000, "rcon": 9000}, {"game": 7005, "rcon": 9001}, {"game": 7005, "rcon": 9000}),
    ],
)
def test_a_dynamic_number_that_was_published_stays_and_a_static_one_follows_its_person(
    told: dict[str, int], published: dict[str, int], numbers: dict[str, int]
) -> None:
    assert numbers_of(runtime(GAME, RCON, told=told), record(**published)) == numbers


def test_an_annotation_that_nobody_can_read_tells_no_number() -> None:
    garbled = msgspec.structs.replace(runtime(GAME), annotations={ANNOTATION_HOST_PORTS: '{"game": 70000}'})
    assert numbers_of(garbled, record()) == {}


def test_each_transport_of_a_port_is_led_in_under_its_number() -> None:
    assert host_ports(runtime(GAME, BOTH, RCON, INSIDE), {"game": 7000, "both": 7001, "rcon": 9000}) == (
        HostPort("game", "UDP", 7777, 7000),
        HostPort("both", "TCP", 27015, 7001),
        HostPort("both", "UDP", 27015, 7001),
        HostPort("rcon", "TCP", 25575, 9000),
    )


def test_ports_that_stay_inside_need_no_number() -> None:
    assert host_ports(runtime(INSIDE), {}) == ()
    assert host_ports(runtime(), {"former": 7000}) == ()


def test_one_port_without_a_number_is_waited_for_and_takes_none_from_the_others() -> None:
    asked = runtime(GAME, RCON)
    assert host_ports(asked, {"rcon": 9000}) is None
    assert numbered_ports(asked, {"rcon": 9000}) == (HostPort("rcon", "TCP", 25575, 9000),)


# ---------------------------------------------------------------------------------------------- what is shown


def test_the_status_has_every_port_of_the_spec_and_numbers_only_of_what_is_served() -> None:
    served = (
        HostPort("both", "TCP", 27015, 7001),
        HostPort("both", "UDP", 27015, 7001),
        HostPort("old", "TCP", 1, 7009),
    )
    facts = SandboxFacts("/run/netns/x", NetworkMode.CNI, True, ("10.0.0.2",), served)
    assert shown_ports(runtime(BOTH, GAME, INSIDE, told={"game": 7002}), facts) == (
        PortStatus(name="both", protocol=PortProtocol.TCPUDP, container_port=27015, host_port=7001),
        PortStatus(name="game", protocol=PortProtocol.UDP, container_port=7777, host_port=None),
        PortStatus(name="inside", protocol=PortProtocol.TCP, container_port=80, host_port=None),
    )
