"""What is on the node and what is on record drift apart: what is ours is taken in again, what tells of nothing is dropped,
and what is not ours is told to people and left alone."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.e2e.harness.machine import Machine, Stage, standalone
from tests.e2e.harness.processes import Operator
from tests.e2e.harness.runtimes import Runtime
from tests.e2e.harness.waiting import eventually

from perdure.journal.file import FILE_NAME
from rig.clients import Kubectl

RESYNC_SECONDS = 1


@pytest.fixture
def stage(machine: Machine, new_operator: Callable[..., Operator]) -> Iterator[Stage]:
    with standalone(machine, new_operator) as stage:
        stage.operator.stop()
        stage.operator.variables["PERDURE_RESYNC_SECONDS"] = str(RESYNC_SECONDS)
        stage.operator.start()
        yield stage


def edges(stage: Stage, uid: str, op: str) -> list[tuple[str, str | None, str | None]]:
    rows = (row for row in stage.ledger.operations(uid) if row["op"] == op)
    return [(row["source"], row["outcome"], row["message"]) for row in rows]


def node_condition(stage: Stage, type_: str) -> dict[str, Any]:
    for node in stage.machine.api.nodes():
        if node["metadata"]["name"] == stage.site.name:
            conditions: list[dict[str, Any]] = node.get("status", {}).get("conditions", [])
            return next((condition for condition in conditions if condition["type"] == type_), {})
    return {}


def vanish(runtime: Runtime) -> None:
    """The object goes at once while nobody looks, as when etcd is put back to an earlier day."""
    runtime.kubectl("patch", runtime.resource, runtime.name, "--type=merge", "-p", '{"metadata":{"finalizers":[]}}')
    runtime.delete()
    runtime.wait_gone()


def test_a_container_that_nobody_remembers_is_adopted_and_runs_on(stage: Stage, kubectl: Kubectl) -> None:
    runtime = stage.runtime(kubectl, "foundling").apply().wait_ready()
    runtime.run("echo mine > /data/file")
    before = runtime.process()
    stage.operator.stop()
    (stage.site.state_dir / FILE_NAME).unlink()
    stage.operator.start()
    eventually(
        lambda: [edge[:2] for edge in edges(stage, runtime.uid, "adopt")],
        "the ledger tells of the adoption",
        lambda seen: seen == [("auto_reconcile", "success")],
    )
    runtime.wait_ready()
    assert runtime.process() == before
    assert runtime.run("cat /data/file") == "mine\n"


def test_a_record_with_nothing_behind_it_is_dropped_and_its_data_comes_back_with_the_name(
    stage: Stage, kubectl: Kubectl
) -> None:
    runtime = stage.runtime(kubectl, "phoenix")
    runtime.apply(stoppedTTL="0s").wait_ready()
    runtime.run("echo kept > /data/file")
    uid = runtime.uid
    runtime.patch(desiredState="Stopped")
    runtime.wait_phase("Removed")
    stage.operator.stop()
    vanish(runtime)
    stage.operator.start()
    eventually(lambda: edges(stage, uid, "dispose"), "its record is dropped", lambda seen: len(seen) == 1)
    ((source, outcome, message),) = edges(stage, uid, "dispose")
    assert (source, outcome) == ("auto_reconcile", "success")
    assert "its data is kept as archive" in (message or "")
    again = stage.runtime(kubectl, "phoenix").apply().wait_ready()
    assert again.uid != uid
    assert again.run("cat /data/file") == "kept\n"


def test_a_container_without_its_object_runs_on_and_its_record_stays(stage: Stage, kubectl: Kubectl) -> None:
    runtime = stage.runtime(kubectl, "orphan").apply().wait_ready()
    process, uid = runtime.process(), runtime.uid
    idle = stage.runtime(kubectl, "idle").apply(desiredState="Stopped")
    idle.wait_phase("Stopped")
    stage.operator.stop()
    vanish(runtime)
    vanish(idle)
    stage.operator.start()
    eventually(lambda: edges(stage, idle.uid, "dispose"), "the other record is dropped", lambda seen: len(seen) == 1)
    assert node_condition(stage, "NoOrphans")["status"] == "False"
    assert process.is_alive()
    assert edges(stage, uid, "dispose") == []


def test_what_is_not_ours_is_reported_and_left_alone(stage: Stage, kubectl: Kubectl) -> None:
    runtime = stage.runtime(kubectl, "neighbour").apply().wait_ready()
    eventually(
        lambda: node_condition(stage, "NoStrangers"), "nothing is strange", lambda it: it.get("status") == "True"
    )
    image = stage.site.ctr.names("images", "ls")[0]
    stage.site.ctr("containers", "create", "--snapshotter", "overlayfs", image, "intruder")
    said = eventually(
        lambda: node_condition(stage, "NoStrangers"), "it is reported", lambda it: it.get("status") == "False"
    )
    assert said["reason"] == "NotOurs"
    assert "container intruder" in said["message"]
    assert "snapshot intruder" in said["message"]
    assert "intruder" in stage.site.ctr.names("containers", "ls")
    assert runtime.container_id not in said["message"]
    stage.site.ctr("containers", "rm", "intruder")  # its snapshot goes with it
    eventually(lambda: node_condition(stage, "NoStrangers"), "it is over", lambda it: it.get("status") == "True")
