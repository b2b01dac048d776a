"""Which numbers ports have, for whatever is asked and whatever is there; and when the controller has to look."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.api import names
from perdure.api.names import NodeName, Uid
from perdure.api.network import PortPolicy, PortProtocol, RuntimePort
from perdure.api.runtime import parse_runtime
from perdure.plan.allotment import (
    Allotment,
    Exhausted,
    NodePort,
    NodePorts,
    PortDemand,
    PortRange,
    Reservation,
    Taken,
    Transport,
    allot,
    are_published,
    redraw,
    transports,
)
from perdure.plan.binding import Refused

WITHIN = PortRange(10, 14)

NUMBERS = st.integers(8, 16)
SLOTS = st.builds(NodePort, st.sampled_from(Transport), NUMBERS)
NAMES = st.sampled_from("abcd")


def of(name: str, protocol: PortProtocol, number: int | None) -> RuntimePort:
    policy = PortPolicy.DYNAMIC if number is None else PortPolicy.STATIC
    return RuntimePort(name=name, container_port=1, protocol=protocol, policy=policy, host_port=number)


PORTS = st.builds(of, NAMES, st.sampled_from(PortProtocol), st.none() | NUMBERS)
DEMANDS = st.builds(PortDemand, st.lists(PORTS, unique_by=lambda port: port.name).map(tuple), st.just(WITHIN))


@st.composite
def held_by_a_demand(draw: Any) -> NodePorts:
    """What an earlier demand, if it could be met, left on a node with others on it."""
    others = draw(st.dictionaries(SLOTS, st.just(Uid("other")), max_size=12))
    node = NodePorts({}, others, draw(st.integers(0, 20)))
    before = allot(draw(DEMANDS), node)
    return NodePorts(before.put, others, before.latest) if isinstance(before, Allotment) else node


@settings(max_examples=150)
@given(held_by_a_demand(), DEMANDS)
def test_every_port_has_its_own_number_or_none_has_any(node: NodePorts, demand: PortDemand) -> None:
    answer = allot(demand, node)
    if not isinstance(answer, Allotment):
        assert answer.port in demand.ports
        return
    after = {**{at: it for at, it in node.mine.items() if at not in answer.drop}, **answer.put}
    assert after.keys().isdisjoint(node.others)
    numbers = dict(answer.numbers)
    slots = [NodePort(t, numbers[port.name]) for port in demand.ports for t in transports(port.protocol)]
    assert len(slots) == len(set(slots))
    assert set(slots) == after.keys()
    for port in demand.ports:
        assert port.host_port in (None, numbers[port.name])
        assert after[NodePort(transports(port.protocol)[0], numbers[port.name])].name == port.name


@settings(max_examples=150)
@given(held_by_a_demand(), DEMANDS)
def test_what_was_allotted_is_allotted_again_and_nothing_is_written(node: NodePorts, demand: PortDemand) -> None:
    first = allot(demand, node)
    if isinstance(first, Allotment):
        kept = {at: it for at, it in node.mine.items() if at not in first.drop}
        again = allot(demand, NodePorts({**kept, **first.put}, node.others, first.latest))
        assert again == Allotment({}, frozenset(), first.latest, first.numbers)


@settings(max_examples=150)
@given(held_by_a_demand(), DEMANDS)
def test_a_dynamic_port_that_stays_keeps_its_number(node: NodePorts, demand: PortDemand) -> None:
    answer = allot(demand, node)
    if isinstance(answer, Allotment):
        for port in demand.ports:
            held = {at.transport for at, reservation in node.mine.items() if reservation.name == port.name}
            if port.host_port is None and held == set(transports(port.protocol)):
                assert dict(answer.numbers)[port.name] == node.number_of(port.name)


@settings(max_examples=150)
@given(held_by_a_demand(), DEMANDS)
def test_a_refusal_is_true(node: NodePorts, demand: PortDemand) -> None:
    answer = allot(demand, node)
    if isinstance(answer, Taken):
        assert answer.port.host_port == answer.at.number
        assert node.others.get(answer.at) == answer.by
    elif isinstance(answer, Exhausted):
        assert answer.port.policy is PortPolicy.DYNAMIC


@settings(max_examples=150)
@given(held_by_a_demand(), NAMES, NUMBERS)
def test_another_number_is_free_and_in_the_range(node: NodePorts, name: str, taken: int) -> None:
    answer = redraw(name, taken, node, WITHIN, NodeName("n"))
    if isinstance(answer, int) and answer != node.number_of(name):
        own = [at.transport for at, reservation in node.mine.items() if reservation.name == name]
        assert own
        assert WITHIN.first <= answer <= WITHIN.last
        assert {NodePort(transport, answer) for transport in own}.isdisjoint({*node.mine, *node.others})
    elif isinstance(answer, Refused):
        assert node.number_of(name) == taken


@pytest.mark.parametrize("latest", [0, 9, 14, 65535])
def test_a_range_is_walked_once_from_wherever_the_last_draw_was(latest: int) -> None:
    assert list(WITHIN.after(latest)) == [10, 11, 12, 13, 14]
    assert list(WITHIN.after(12)) == [13, 14, 10, 11, 12]


def test_an_earlier_reservation_outside_of_the_range_stays() -> None:
    node = NodePorts({NodePort(Transport.TCP, 99): Reservation("a", False)}, {}, 0)
    answer = allot(PortDemand((of("a", PortProtocol.TCP, None),), WITHIN), node)
    assert answer == Allotment({}, frozenset(), 0, (("a", 99),))


@pytest.mark.parametrize(
    ("published", "served", "settled"),
    [
        ('{"game":7000,"rcon":9000}', {}, True),
        ('{"game":7000,"rcon":9000}', {"game": 7000, "rcon": 9000}, True),
        ('{"game":7000,"rcon":9000}', {"game": 7001}, False),
        ('{"game":7000,"rcon":9000}', {"gone": 7001}, True),
        ('{"game":7000,"rcon":9001}', {}, False),
        ('{"game":7000}', {}, False),
        ('{"game":7000,"other":7001,"rcon":9000}', {}, False),
        ("garbage", {}, False),
    ],
)
def test_the_controller_looks_when_what_is_published_is_not_what_is_wanted_or_served(
    published: str, served: dict[str, int], settled: bool
) -> None:
    runtime = parse_runtime(
        {
            "kind": "GameRuntime",
            "metadata": {
                "name": "castle",
                "namespace": "ns",
                "uid": "u",
                "annotations": {names.ANNOTATION_HOST_PORTS: published},
            },
            "spec": {
                "image": "i",
                "ports": [
                    {"name": "game", "containerPort": 1},
                    {"name": "rcon", "containerPort": 2, "policy": "Static", "hostPort": 9000},
                    {"name": "metrics", "containerPort": 3, "policy": "None"},
                ],
            },
            "status": {
                "ports": [
                    {"name": name, "protocol": "TCP", "containerPort": 1, "hostPort": number}
                    for name, number in served.items()
                ]
            },
        }
    )
    assert are_published(runtime) is settled
