"""Ports on nodes, as every ledger gives them: PostgreSQL and the fake of the crash matrix."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.contract.ledger_rig import Rig, rig
from tests.integration.ledger.samples import NAME_A, NAME_B, NODE_A, NODE_B, TTL, finished, ref

from perdure.api.conditions import Reason
from perdure.api.names import NodeId, NodeName, RuntimeRef
from perdure.api.network import PortPolicy, PortProtocol, RuntimePort
from perdure.api.phases import Phase
from perdure.api.runtime import Restore
from perdure.plan.allotment import PortDemand, PortRange
from perdure.plan.binding import Refused
from perdure.reconcile.ports.ledger import Binding

__all__ = ["rig"]

WITHIN = PortRange(7000, 7004)


def dynamic(name: str, protocol: PortProtocol = PortProtocol.TCP) -> RuntimePort:
    return RuntimePort(name=name, container_port=80, protocol=protocol)


def static(name: str, number: int, protocol: PortProtocol = PortProtocol.TCP) -> RuntimePort:
    return RuntimePort(name=name, container_port=80, policy=PortPolicy.STATIC, host_port=number, protocol=protocol)


async def bind(
    rig: Rig,
    of: RuntimeRef,
    *ports: RuntimePort,
    node: NodeId = NODE_A,
    name: NodeName = NAME_A,
    within: PortRange = WITHIN,
) -> dict[str, int]:
    """The numbers of a runtime that is bound, or has been."""
    binding = await rig.controller().bind(of, name, node, "image:1", PortDemand(ports, within))
    assert isinstance(binding, Binding), binding
    return dict(binding.ports)


async def refused(rig: Rig, of: RuntimeRef, *ports: RuntimePort, **where: Any) -> Refused:
    answer = await rig.controller().bind(of, NAME_A, NODE_A, "image:1", PortDemand(ports, where.get("within", WITHIN)))
    assert isinstance(answer, Refused), answer
    return answer


async def test_a_binding_brings_its_ports_and_a_repetition_the_same(rig: Rig) -> None:
    wanted = (dynamic("game", PortProtocol.UDP), static("rcon", 9000), dynamic("query", PortProtocol.TCPUDP))
    first = await bind(rig, ref(), *wanted)
    assert first == {"game": 7000, "query": 7001, "rcon": 9000}
    assert await bind(rig, ref(), *wanted) == first
    assert await bind(rig, ref(), *wanted[::-1], within=PortRange(8000, 8001)) == first


async def test_a_binding_without_a_demand_touches_no_ports(rig: Rig) -> None:
    numbers = await bind(rig, ref(), dynamic("game"))
    binding = await rig.controller().bind(ref(), NAME_A, NODE_A, "image:1")
    assert binding == Binding(ref().uid, NAME_A, NODE_A)
    assert await bind(rig, ref(), dynamic("game")) == numbers


async def test_ports_are_those_of_the_node_that_the_runtime_is_bound_to(rig: Rig) -> None:
    assert await rig.controller().bind(ref("uid-1"), NAME_B, NODE_B, "image:1") == Binding(ref().uid, NAME_B, NODE_B)
    await bind(rig, ref("uid-1"), static("game", 9000), node=NODE_A)
    assert await bind(rig, ref("uid-2"), static("game", 9000), node=NODE_A) == {"game": 9000}
    answer = await rig.controller().bind(
        ref("uid-3"), NAME_B, NODE_B, "image:1", PortDemand((static("game", 9000),), WITHIN)
    )
    assert isinstance(answer, Refused)


async def test_one_number_serves_two_runtimes_with_different_protocols(rig: Rig) -> None:
    await bind(rig, ref("uid-1"), static("a", 9000, PortProtocol.UDP))
    await bind(rig, ref("uid-2"), static("a", 9000, PortProtocol.TCP))
    assert (await refused(rig, ref("uid-3"), static("a", 9000, PortProtocol.TCPUDP))).reason is Reason.PORT_TAKEN


async def test_a_number_that_is_taken_is_refused_with_who_has_it_and_nothing_is_bound(rig: Rig) -> None:
    await bind(rig, ref("uid-1", name="castle"), static("game", 9000))
    answer = await refused(rig, ref("uid-2"), dynamic("web"), static("game", 9000))
    assert answer.reason is Reason.PORT_TAKEN
    assert "9000/TCP of node a is reserved by BotRuntime team-a/castle" in answer.message
    assert (await rig.controller().read(ref("uid-2"), Restore())).binding is None
    assert await bind(rig, ref("uid-2"), dynamic("web"), node=NODE_B, name=NAME_B) == {"web": 7000}
    assert await bind(rig, ref("uid-3"), dynamic("web")) == {"web": 7000}


async def test_a_range_without_a_free_number_is_refused_until_one_is_given_back(rig: Rig) -> None:
    for n in range(5):
        await bind(rig, ref(f"uid-{n}"), dynamic("game"))
    answer = await refused(rig, ref("uid-5"), dynamic("game"))
    assert answer.reason is Reason.PORT_RANGE_EXHAUSTED
    assert "7000-7004" in answer.message
    assert await bind(rig, ref("uid-6"), dynamic("game", PortProtocol.UDP)) == {"game": 7000}
    await rig.controller().free_ports(ref("uid-2"))
    assert await bind(rig, ref("uid-5"), dynamic("game")) == {"game": 7002}


async def test_a_number_that_was_given_back_is_the_last_to_be_drawn_again(rig: Rig) -> None:
    await bind(rig, ref("uid-0"), dynamic("game"))
    await rig.controller().free_ports(ref("uid-0"))
    drawn = [(await bind(rig, ref(f"uid-{n}"), dynamic("game")))["game"] for n in range(1, 6)]
    assert drawn == [7001, 7002, 7003, 7004, 7000]


async def test_an_edit_gives_back_what_is_not_asked_for_and_leaves_the_other_numbers(rig: Rig) -> None:
    await bind(rig, ref(), dynamic("a"), dynamic("b"), static("c", 9000))
    assert await bind(rig, ref(), dynamic("d"), dynamic("b"), static("c", 9001)) == {"b": 7001, "c": 9001, "d": 7002}
    assert await bind(rig, ref("uid-2"), static("x", 9000), static("y", 7000)) == {"x": 9000, "y": 7000}
    assert await bind(rig, ref()) == {}
    assert await bind(rig, ref("uid-3"), static("x", 9001), static("y", 7001)) == {"x": 9001, "y": 7001}


async def test_an_edit_that_cannot_be_met_changes_nothing(rig: Rig) -> None:
    await bind(rig, ref("uid-1"), static("a", 9000))
    before = await bind(rig, ref("uid-2"), static("a", 9001), dynamic("b"))
    assert (await refused(rig, ref("uid-2"), static("a", 9000), dynamic("c"))).reason is Reason.PORT_TAKEN
    assert await bind(rig, ref("uid-2"), static("a", 9001), dynamic("b")) == before
    taken = await refused(rig, ref("uid-2"), static("a", before["b"]), dynamic("b"))
    assert "another port of this runtime" in taken.message


async def test_a_number_may_become_static_and_dynamic_again(rig: Rig) -> None:
    numbers = await bind(rig, ref(), dynamic("a"))
    assert await rig.agent().ports_published(ref(), numbers)
    assert await bind(rig, ref(), static("a", numbers["a"])) == numbers
    assert await bind(rig, ref(), dynamic("a")) == numbers
    assert isinstance(await rig.agent().replace_port(ref(), NAME_A, "a", numbers["a"]), Refused)


async def test_runtimes_that_race_never_share_a_number(rig: Rig) -> None:
    for number in range(5):
        refs = [ref(f"uid-{number}-{n}") for n in range(8)]
        demand = PortDemand((dynamic("a", PortProtocol.TCPUDP), static("b", 9000 + number)), PortRange(7000, 7100))
        answers = await asyncio.gather(
            *(rig.controller().bind(of, NAME_A, NODE_A, "image:1", demand) for of in refs for _ in range(2))
        )
        bound = {answer for answer in answers if isinstance(answer, Binding)}
        assert len(bound) == 1
        assert all(answer.reason is Reason.PORT_TAKEN for answer in answers if isinstance(answer, Refused))


async def test_racing_repetitions_of_one_binding_agree(rig: Rig) -> None:
    demand = PortDemand((dynamic("a"), dynamic("b")), WITHIN)
    answers = await asyncio.gather(*(rig.controller().bind(ref(), NAME_A, NODE_A, "image:1", demand) for _ in range(8)))
    assert set(answers) == {Binding(ref().uid, NAME_A, NODE_A, (("a", 7000), ("b", 7001)))}


# ---------------------------------------------------------------------------------------------- the agent's half


async def test_a_port_that_somebody_else_listens_on_is_replaced_once(rig: Rig) -> None:
    await bind(rig, ref(), dynamic("a", PortProtocol.TCPUDP), dynamic("b"))
    agent = rig.agent()
    assert await agent.replace_port(ref(), NAME_A, "a", 7000) == 7002
    assert await agent.replace_port(ref(), NAME_A, "a", 7000) == 7002
    assert await bind(rig, ref(), dynamic("a", PortProtocol.TCPUDP), dynamic("b")) == {"a": 7002, "b": 7001}
    assert await agent.replace_port(ref(), NAME_A, "a", 7002) == 7003
    assert await bind(rig, ref("uid-2"), static("x", 7000, PortProtocol.TCPUDP)) == {"x": 7000}


async def test_a_port_that_was_published_or_asked_for_is_never_replaced(rig: Rig) -> None:
    numbers = await bind(rig, ref(), dynamic("a"), static("b", 9000))
    agent = rig.agent()
    assert await agent.ports_published(ref(), {"a": numbers["a"]})
    assert await agent.ports_published(ref(), {"a": numbers["a"]})
    for name, why in (("a", "it was published and stays"), ("b", "its policy is Static")):
        answer = await agent.replace_port(ref(), NAME_A, name, numbers[name])
        assert isinstance(answer, Refused)
        assert answer.reason is Reason.PORT_TAKEN
        assert why in answer.message
    assert await bind(rig, ref(), dynamic("a"), static("b", 9000)) == numbers


async def test_there_may_be_no_other_port(rig: Rig) -> None:
    numbers = await bind(rig, ref(), *(dynamic(name) for name in "abcde"))
    answer = await rig.agent().replace_port(ref(), NAME_A, "a", numbers["a"])
    assert isinstance(answer, Refused)
    assert answer.reason is Reason.PORT_RANGE_EXHAUSTED


async def test_what_is_not_reserved_here_is_neither_replaced_nor_published(rig: Rig) -> None:
    assert await rig.agent().replace_port(ref(), NAME_A, "a", 7000) is None
    numbers = await bind(rig, ref(), dynamic("a"), dynamic("b"))
    assert await rig.agent().replace_port(ref(), NAME_A, "c", 7000) is None
    assert await rig.agent(NODE_B).replace_port(ref(), NAME_B, "a", numbers["a"]) is None
    assert not await rig.agent(NODE_B).ports_published(ref(), numbers)
    assert not await rig.agent().ports_published(ref(), {"a": numbers["a"], "b": 7004})
    assert not await rig.agent().ports_published(ref(), {"a": numbers["a"], "c": 7004})
    assert await rig.agent().ports_published(ref(), {})
    assert await rig.agent().replace_port(ref(), NAME_A, "b", numbers["b"]) == 7002


# ---------------------------------------------------------------------------------------------- the end


async def test_ports_outlive_a_stop_and_go_with_the_life(rig: Rig) -> None:
    agent, controller = rig.agent(), rig.controller()
    numbers = await bind(rig, ref(), dynamic("a"))
    await agent.ports_published(ref(), numbers)
    await agent.apply([finished(ref(), 1, after=Phase.STOPPED, snapshot_key="key-1")], NAME_A)
    assert await controller.abandoned_ports(0.0) == ()
    lease = await agent.acquire("key", TTL)
    await agent.finish(finished(ref(), 2, at=200, after=Phase.REMOVED), NAME_A, lease, release=True)
    assert await controller.abandoned_ports(3600.0) == (ref(),)
    await controller.free_ports(ref())
    await controller.free_ports(ref())
    assert await controller.abandoned_ports(0.0) == ()
    assert not await agent.ports_published(ref(), numbers)


async def test_ports_that_nobody_ever_showed_may_be_abandoned(rig: Rig) -> None:
    controller = rig.controller()
    first, second = ref("uid-1"), ref("uid-2")
    await bind(rig, first, dynamic("a"), dynamic("b"))
    await bind(rig, second, dynamic("a"), dynamic("b"))
    assert await controller.abandoned_ports(3600.0) == ()
    assert set(await controller.abandoned_ports(0.0)) == {first, second}
    assert await rig.agent().ports_published(second, {"a": 7002})
    assert await controller.abandoned_ports(0.0) == (first,)
    await controller.free_ports(first)
    assert await controller.abandoned_ports(0.0) == ()


async def test_ports_of_an_object_that_was_given_up_are_told(rig: Rig) -> None:
    numbers = await bind(rig, ref(), dynamic("a"))
    await rig.agent().ports_published(ref(), numbers)
    await rig.controller().force_release(ref(), "the node burnt down")
    assert await rig.controller().abandoned_ports(3600.0) == (ref(),)
