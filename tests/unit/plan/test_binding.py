"""Which node a runtime goes to."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from perdure.api import names
from perdure.api.conditions import Reason
from perdure.api.names import NodeId, NodeName
from perdure.api.node import NodeAmounts, NodeSpec, NodeStatus, RuntimeNode
from perdure.api.quantity import parse_bytes
from perdure.api.runtime import ResourceRequests, Resources, RuntimeSpec
from perdure.plan import binding
from perdure.plan.binding import Amounts, Candidate, Chosen, Refused, choose_node, requested

SPEC = RuntimeSpec(image="x", resources=Resources(requests=ResourceRequests(cpu="500m", memory="256Mi")))


def candidate(
    name: str,
    *,
    alive: bool = True,
    cordoned: bool = False,
    terminating: bool = False,
    cpu: str = "2",
    memory: str = "2Gi",
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Candidate:
    node = RuntimeNode(
        name=NodeName(name),
        uid=name,
        resource_version="1",
        labels=labels or {},
        annotations=annotations or {},
        terminating=terminating,
        spec=NodeSpec(unschedulable=cordoned),
        status=NodeStatus(node_id=f"id-{name}", allocatable=NodeAmounts(cpu=cpu, memory=memory)),
    )
    return Candidate(node, alive)


def chosen(name: str) -> Chosen:
    return Chosen(NodeName(name), NodeId(f"id-{name}"))


def test_the_least_loaded_by_share_is_chosen_and_the_name_decides_a_tie() -> None:
    nodes = [candidate("b"), candidate("a")]
    assert choose_node(SPEC, nodes, {}, None) == chosen("a")
    assert choose_node(SPEC, nodes, {NodeId("id-a"): Amounts(100, 0)}, None) == chosen("b")
    big = candidate("c", cpu="100", memory="100Gi")
    used = {NodeId("id-a"): Amounts(200, 0), NodeId("id-b"): Amounts(200, 0), NodeId("id-c"): Amounts(1000, 0)}
    assert choose_node(SPEC, [*nodes, big], used, None) == chosen("c")


def test_what_runtimes_ask_for_is_read_once_however_often_they_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand bound ones are counted for each choice."""
    read: list[str | int] = []

    def counted(text: str | int) -> int:
        read.append(text)
        return parse_bytes(text)

    monkeypatch.setattr(binding, "parse_bytes", counted)
    specs = [
        RuntimeSpec(image="x", resources=Resources(requests=ResourceRequests(cpu="77m", memory=memory)))
        for memory in ("1234567Ki", "1234568Ki", "no quantity at all") * 5
    ]
    answers = [requested(spec) for spec in specs]
    assert sorted(map(str, read)) == ["1234567Ki", "1234568Ki", "no quantity at all"]
    assert answers == [Amounts(77, 1234567 * 1024), Amounts(77, 1234568 * 1024), Amounts()] * 5


@pytest.mark.parametrize(
    ("unfit", "why"),
    [
        (candidate("a", alive=False), "not reporting"),
        (candidate("a", cordoned=True), "cordoned"),
        (candidate("a", terminating=True), "out of service"),
        (candidate("a", annotations={names.ANNOTATION_OUT_OF_SERVICE: "dead"}), "out of service"),
        (candidate("a", cpu="400m"), "without room"),
        (candidate("a", memory="100Mi"), "without room"),
        (candidate("a", cpu="much"), "without room"),
        (candidate("a" * 64), "more than 63"),
    ],
)
def test_a_node_that_does_not_fit_is_passed_over_and_said_why(unfit: Candidate, why: str) -> None:
    assert choose_node(SPEC, [unfit, candidate("z")], {}, None) == chosen("z")
    refused = choose_node(SPEC, [unfit], {}, None)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.UNSCHEDULABLE
    assert why in refused.message


def test_node_name_and_selector_are_obeyed() -> None:
    nodes = [candidate("a"), candidate("b", labels={"disk": "fast"})]
    assert choose_node(RuntimeSpec(image="x", node_name="b"), nodes, {}, None) == chosen("b")
    assert choose_node(RuntimeSpec(image="x", node_selector={"disk": "fast"}), nodes, {}, None) == chosen("b")
    assert isinstance(choose_node(RuntimeSpec(image="x", node_name="c"), nodes, {}, None), Refused)


def test_what_is_to_be_restored_goes_where_it_can_be_read_or_nowhere() -> None:
    nodes = [candidate("a"), candidate("b")]
    assert choose_node(SPEC, nodes, {NodeId("id-b"): Amounts(900, 0)}, NodeId("id-b")) == chosen("b")
    refused = choose_node(SPEC, nodes, {}, NodeId("id-gone"))
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.ARCHIVE_NOT_REACHABLE


@pytest.mark.parametrize(
    ("pinned", "is_lost"),
    [
        (candidate("b", alive=False), True),
        (candidate("b", annotations={names.ANNOTATION_OUT_OF_SERVICE: "dead"}), True),
        (candidate("b", cordoned=True), False),
    ],
)
def test_who_waits_for_a_node_that_is_away_is_told_how_to_go_on(pinned: Candidate, is_lost: bool) -> None:
    refused = choose_node(SPEC, [candidate("a"), pinned], {}, NodeId("id-b"))
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.UNSCHEDULABLE
    assert ("bring the node with the archive back, or set restore.policy: None" in refused.message) is is_lost


def test_a_node_without_the_ports_is_passed_over_and_what_is_missing_is_said() -> None:
    nodes = [candidate("a"), candidate("b"), candidate("c", cordoned=True)]
    taken = Refused(Reason.PORT_TAKEN, "9000 is reserved by another")
    exhausted = Refused(Reason.PORT_RANGE_EXHAUSTED, "none is free")
    assert choose_node(SPEC, nodes, {}, None, {NodeId("id-a"): taken}) == chosen("b")
    assert choose_node(SPEC, nodes, {}, None, {NodeId("id-a"): taken, NodeId("id-b"): exhausted}) == taken
    elsewhere = choose_node(SPEC, [nodes[2]], {}, None, {NodeId("id-c"): taken})
    assert isinstance(elsewhere, Refused)
    assert elsewhere.reason is Reason.UNSCHEDULABLE


def test_no_node_at_all_is_said() -> None:
    refused = choose_node(SPEC, [], {}, None)
    assert isinstance(refused, Refused)
    assert "perdure agent" in refused.message
