"""What is sent so that a status becomes another one."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from perdure.api.node import NodeAmounts, NodeStatus
from perdure.api.runtime import Condition, LastExit, RuntimeStatus, status_to_json
from perdure.kube.status import merge_conditions, node_status_patch, status_patch

OLD, NOW = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def condition(kind: str, status: str, reason: str = "R", message: str = "", since: str = "") -> Condition:
    return Condition(type=kind, status=status, reason=reason, message=message, last_transition_time=since)


def test_condition_keeps_its_time_while_its_status_stays() -> None:
    before = (condition("Ready", "False", "InProgress", since=OLD),)
    (after,) = merge_conditions(before, (condition("Ready", "False", "StartFailed", "no image"),), NOW)
    assert (after.last_transition_time, after.reason, after.message) == (OLD, "StartFailed", "no image")


def test_condition_whose_status_changed_gets_the_time_of_now() -> None:
    before = (condition("Ready", "False", since=OLD), condition("DataReady", "True", since=OLD))
    after = merge_conditions(before, (condition("Ready", "True"), condition("Preserved", "True")), NOW)
    assert [(item.type, item.last_transition_time) for item in after] == [("Ready", NOW), ("Preserved", NOW)]


def test_same_status_is_no_patch() -> None:
    before = RuntimeStatus(phase="Running", restarts=1, conditions=(condition("Ready", "True", since=OLD),))
    wanted = RuntimeStatus(phase="Running", restarts=1, conditions=(condition("Ready", "True"),))
    assert status_patch(before, wanted, NOW) == {}


def test_only_what_differs_is_sent_and_what_goes_is_null() -> None:
    before = RuntimeStatus(phase="Stopped", stopped_at=OLD, node_name="n")
    assert status_patch(before, RuntimeStatus(phase="Running", node_name="n"), NOW) == {
        "phase": "Running",
        "stoppedAt": None,
    }


def test_status_that_could_not_be_read_is_replaced_as_a_whole() -> None:
    patch = status_patch(RuntimeStatus(), RuntimeStatus(phase="Running"), NOW)
    assert patch["phase"] == "Running"
    assert patch["restarts"] is None
    assert patch["conditions"] is None


def test_node_status_is_compared_the_same_way() -> None:
    before = NodeStatus(node_id="id", engine="containerd", capacity=NodeAmounts(cpu=2, memory="1Gi"))
    assert node_status_patch(before, before, NOW) == {}
    assert node_status_patch(before, NodeStatus(node_id="id"), NOW) == {"engine": None, "capacity": None}


def merged(target: Any, patch: Any) -> Any:
    """RFC 7386, section 2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


times = st.sampled_from([None, OLD, NOW])
exits = st.none() | st.builds(
    LastExit,
    code=st.none() | st.integers(0, 2),
    signal=st.none() | st.integers(9, 10),
    reason=st.sampled_from(["", "Error"]),
    at=st.sampled_from(["", OLD]),
)
conditions = st.lists(
    st.builds(
        condition,
        st.sampled_from(["Ready", "DataReady"]),
        st.sampled_from(["True", "False"]),
        st.sampled_from(["A", "B"]),
        since=st.just(OLD),
    ),
    unique_by=lambda item: item.type,
).map(tuple)
statuses = st.builds(
    RuntimeStatus,
    phase=st.sampled_from([None, "Running", "Stopped"]),
    restarts=st.integers(0, 2),
    started_at=times,
    last_exit=exits,
    conditions=conditions,
)


@given(statuses, statuses)
def test_patch_makes_the_one_into_the_other(before: RuntimeStatus, wanted: RuntimeStatus) -> None:
    after = merged(status_to_json(before), status_patch(before, wanted, NOW))
    undated = [{k: v for k, v in item.items() if k != "lastTransitionTime"} for item in after.pop("conditions", [])]
    expected = status_to_json(wanted)
    plain = [{k: v for k, v in item.items() if k != "lastTransitionTime"} for item in expected.pop("conditions", [])]
    last_exit = after.get("lastExit")
    if wanted.last_exit == LastExit():
        assert last_exit in (None, {})
        after.pop("lastExit", None)
        expected.pop("lastExit", None)
    assert (after, undated) == (expected, plain)
