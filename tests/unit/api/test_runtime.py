"""Parsing of runtimes: what the API server sends becomes typed, and what cannot be typed is still an object."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from perdure.api.archive import object_name
from perdure.api.names import (
    ANNOTATION_HOST_PORTS,
    FINALIZER,
    LABEL_NAMESPACE_UID,
    LABEL_NODE,
    LABEL_NODE_ID,
    Kind,
    NamespaceUid,
    NodeId,
    NodeName,
)
from perdure.api.network import Network, NetworkMode, PortPolicy, PortProtocol, network_mode, write_host_ports
from perdure.api.node import parse_node
from perdure.api.runtime import (
    DesiredState,
    PullPolicy,
    RestorePolicy,
    RuntimeStatus,
    parse_runtime,
    status_to_json,
)


def raw(**changes: Any) -> dict[str, Any]:
    plain = {
        "kind": "BotRuntime",
        "metadata": {"name": "bot", "namespace": "ns", "uid": "u1", "resourceVersion": "7", "generation": 2},
        "spec": {"image": "i:1"},
    }
    return plain | changes


def test_unset_fields_have_the_documented_defaults() -> None:
    spec = parse_runtime(raw()).spec
    assert spec.image_pull_policy is PullPolicy.IF_NOT_PRESENT
    assert spec.desired_state is DesiredState.RUNNING
    assert spec.restore.policy is RestorePolicy.LATEST
    assert (spec.resources.requests.cpu, spec.resources.limits.memory, spec.resources.limits.pids) == (
        "100m",
        "512Mi",
        512,
    )
    assert spec.stop.grace_period_seconds == 10


def test_fields_that_this_version_does_not_know_are_passed_over() -> None:
    runtime = parse_runtime(raw(spec={"image": "i:1", "later": {"a": 1}}, status={"phase": "Running", "later": 1}))
    assert runtime.invalid is None
    assert runtime.status.phase == "Running"


def test_spec_that_cannot_be_read_is_still_an_object_that_can_be_deleted() -> None:
    broken = raw(spec={"image": "i:1", "desiredState": "Flying"})
    broken["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    runtime = parse_runtime(broken)
    assert runtime.invalid is not None
    assert "desiredState" in runtime.invalid
    assert runtime.terminating


def test_status_that_cannot_be_read_proves_nothing() -> None:
    runtime = parse_runtime(raw(status={"phase": "Running", "restarts": "many"}))
    assert runtime.status == RuntimeStatus()
    assert runtime.invalid is None


@pytest.mark.parametrize("missing", ["uid", "name", "namespace"])
def test_what_has_no_identity_is_no_runtime(missing: str) -> None:
    broken = raw()
    del broken["metadata"][missing]
    with pytest.raises(KeyError):
        parse_runtime(broken)


def test_another_kind_is_no_runtime() -> None:
    with pytest.raises(ValueError, match="Pod"):
        parse_runtime(raw(kind="Pod"))


def test_binding_is_read_from_finalizer_and_labels() -> None:
    bound = raw()
    bound["metadata"] |= {
        "finalizers": ["example.org/keep", FINALIZER],
        "labels": {LABEL_NODE: "n", LABEL_NODE_ID: "id", LABEL_NAMESPACE_UID: "nsuid"},
    }
    runtime = parse_runtime(bound)
    assert runtime.protected
    assert (runtime.node_name, runtime.node_id, runtime.namespace_uid) == (
        NodeName("n"), NodeId("id"), NamespaceUid("nsuid")
    )  # fmt: skip


def annotated(value: str) -> dict[str, Any]:
    bound = raw()
    bound["metadata"] |= {"annotations": {ANNOTATION_HOST_PORTS: value}}
    return bound


def test_host_ports_are_read_as_they_are_written() -> None:
    written = write_host_ports({"query": 7001, "game": 7000})
    assert written == '{"game":7000,"query":7001}'
    assert parse_runtime(annotated(written)).host_ports == {"game": 7000, "query": 7001}
    assert write_host_ports({}) is None
    assert parse_runtime(raw()).host_ports == {}


@pytest.mark.parametrize(
    "garbage",
    ["", "{", "7000", "[7000]", "[" * 100_000, '{"a":"7000"}', '{"a":7000.5}', '{"a":true}', '{"a":0}', '{"a":65536}',
     '{"a":7000,"b":null}', '{"a":{"b":1}}', '"\\ud800"'],
)  # fmt: skip
def test_host_ports_that_cannot_be_read_are_none(garbage: str) -> None:
    runtime = parse_runtime(annotated(garbage))
    assert runtime.host_ports == {}
    assert runtime.invalid is None


def test_a_port_is_tcp_and_dynamic_unless_it_says_otherwise() -> None:
    (port,) = parse_runtime(raw(spec={"image": "i:1", "ports": [{"name": "a", "containerPort": 80}]})).spec.ports
    assert (port.protocol, port.policy, port.host_port) == (PortProtocol.TCP, PortPolicy.DYNAMIC, None)


@pytest.mark.parametrize("asked", [None, *NetworkMode])
@pytest.mark.parametrize("node_has_cni", [True, False])
def test_the_network_is_what_is_asked_for_and_else_what_the_node_can(
    asked: NetworkMode | None, node_has_cni: bool
) -> None:
    wanted = asked or (NetworkMode.CNI if node_has_cni else NetworkMode.NONE)
    assert network_mode(Network(mode=asked), node_has_cni=node_has_cni) is wanted


def test_unbound_object_has_no_binding() -> None:
    runtime = parse_runtime(raw())
    assert not runtime.protected
    assert (runtime.node_name, runtime.node_id, runtime.namespace_uid) == (None, None, None)


def test_identity_outlives_a_life_and_container_does_not() -> None:
    first = parse_runtime(raw()).ref(NamespaceUid("n"))
    again = raw()
    again["metadata"]["uid"] = "u2"
    second = parse_runtime(again).ref(NamespaceUid("n"))
    assert first.identity == second.identity
    assert first.container_id != second.container_id
    assert first.snapshot_key(1) != second.snapshot_key(1)


def test_status_is_written_with_kubernetes_names_and_without_what_is_unset() -> None:
    status = RuntimeStatus(phase="Running", node_id="n", container_id="c", observed_generation=3)
    assert status_to_json(status) == {"phase": "Running", "nodeID": "n", "containerID": "c", "observedGeneration": 3}
    assert status_to_json(RuntimeStatus()) == {}


def test_archives_object_has_one_name_for_each_archive() -> None:
    assert object_name(Kind.GAME, "world", 12) == "gr-world-12"


def test_node_is_read_with_its_annotations_and_refuses_nonsense() -> None:
    node = parse_node(
        {
            "metadata": {"name": "n", "uid": "u", "annotations": {"perdure.dev/out-of-service": "burnt"}},
            "status": {"nodeID": "id", "capacity": {"cpu": 4, "memory": "8Gi"}},
        }
    )
    assert node.out_of_service
    assert node.node_id == "id"
    assert node.status.capacity.memory == "8Gi"
    with pytest.raises(msgspec.ValidationError):
        parse_node({"metadata": {"name": "n", "uid": "u"}, "status": {"runtimes": "many"}})
