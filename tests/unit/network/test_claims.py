"""Which numbers may lead into whom: as plugins were asked, whoever remembers it."""

from __future__ import annotations

import pytest
from tests.property.worlds import REF

from perdure.api.names import Uid
from perdure.network.attachments import Attached
from perdure.network.claims import Claims
from perdure.network.cni.attachment import Capabilities, PortMapping
from perdure.network.cni.cache import Record
from perdure.network.container_ids import ContainerIds
from perdure.plan.world import HostPort

ONE, OTHER = Uid("one"), Uid("other")
IDS = ContainerIds("ours-")


def port(number: int, protocol: str = "TCP") -> HostPort:
    return HostPort("game", protocol, 80, number)


def record(uid: Uid, number: int) -> Record:
    asked = Capabilities(port_mappings=(PortMapping(number, 80, "tcp"),)).document()
    return Record("agents", IDS.id(uid), "eth0", "/ns", b"{}", (), asked)


def test_a_number_of_another_protocol_or_of_oneself_is_nobody_else_s() -> None:
    claims = Claims(IDS)
    claims.add(ONE, [port(7001)])
    assert claims.holder(OTHER, port(7001)) == ONE
    assert claims.holder(OTHER, port(7001, "UDP")) is None
    assert claims.holder(ONE, port(7001)) is None


def test_what_is_being_changed_is_held_before_and_after_until_it_is_settled() -> None:
    claims = Claims(IDS)
    claims.settle(ONE, [port(7001)])
    claims.add(ONE, [port(7002)])
    assert claims.holder(OTHER, port(7001)) == claims.holder(OTHER, port(7002)) == ONE
    claims.settle(ONE, [port(7002)])
    assert claims.holder(OTHER, port(7001)) is None
    assert claims.holder(OTHER, port(7002)) == ONE
    claims.drop(ONE)
    assert claims.holder(OTHER, port(7002)) is None


@pytest.mark.parametrize("known_better", [False, True])
def test_what_an_earlier_agent_asked_for_is_held_and_known_to_be_recalled(known_better: bool) -> None:
    claims = Claims(IDS)
    whole = Attached(ref=REF, network="agents", addresses=(), ports=(port(7002),))
    claims.recall([record(ONE, 7001), record(REF.uid, 7003)], [whole])
    assert [claims.holder(OTHER, port(number)) for number in (7001, 7002, 7003)] == [ONE, REF.uid, REF.uid]
    if known_better:
        claims.settle(ONE, [port(7001)])
    assert claims.is_recalled(ONE) is not known_better
    assert claims.is_recalled(REF.uid)
