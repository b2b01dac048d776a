"""The table of phases, walked on real parts: what each edit, crash and deletion wrote into the ledger.

A row of the ledger is (operation, phase before, phase after, outcome): that is what an auditor has when the object is
long gone, so that is what is held against the table.
"""

import re
from typing import Any

import pytest
from tests.e2e.harness.machine import Stage
from tests.e2e.harness.runtimes import Runtime
from tests.e2e.harness.waiting import eventually

from perdure.api.names import Kind
from perdure.api.phases import Phase, may_follow
from rig.clients import Kubectl

Edge = tuple[str, str | None, str | None, str | None]

NO_SECRET: list[dict[str, Any]] = [
    {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "token"}}},
]
TRIED_AGAIN: Edge = ("start", "Failed", "Failed", "failure")


@pytest.fixture
def runtime(stage: Stage, kubectl: Kubectl) -> Runtime:
    return stage.runtime(kubectl, "eve")


def rows_become(stage: Stage, runtime: Runtime, expected: list[Edge]) -> None:
    """Wait until exactly these operations are in the ledger, in this order, and all of them are finished; but for further
    tries of a start that failed, of which there are as many as there was time for."""

    def told() -> list[Edge]:
        return [edge for edge in stage.ledger.edges(runtime.uid) if edge != TRIED_AGAIN]

    eventually(told, "the ledger tells it", lambda rows: rows == expected)
    for _op, before, after, _outcome in expected:
        assert after is not None
        assert may_follow(Phase(before) if before else None, Phase(after)), f"{before} -> {after} is not in the table"


def last_row_becomes(stage: Stage, runtime: Runtime, expected: Edge) -> None:
    eventually(lambda: stage.ledger.edges(runtime.uid)[-1:], "the ledger tells it", lambda rows: rows == [expected])


def test_every_wish_and_every_crash_of_a_life_is_an_edge_of_the_table(
    stage: Stage, kubectl: Kubectl, kind: Kind
) -> None:
    runtime = stage.runtime(kubectl, "eve", kind)
    walk: list[Edge] = []

    def step(phase: str, *edges: Edge) -> None:
        runtime.wait_phase(phase)
        walk.extend(edges)
        rows_become(stage, runtime, walk)

    runtime.apply(desiredState="Stopped")
    step("Stopped", ("stop", None, "Stopped", "success"))
    runtime.patch(desiredState="Running")
    step("Running", ("start", "Stopped", "Running", "success"))
    runtime.patch(desiredState="Removed")
    step("Removed", ("stop", "Running", "Stopped", "success"), ("cleanup_container", "Stopped", "Removed", "success"))
    runtime.patch(desiredState="Running")
    step("Running", ("restore", "Removed", "Running", "success"))
    runtime.patch(desiredState="Stopped")
    step("Stopped", ("stop", "Running", "Stopped", "success"))
    runtime.patch(desiredState="Removed")
    step("Removed", ("cleanup_container", "Stopped", "Removed", "success"))
    runtime.patch(desiredState="Stopped")
    step("Removed")
    runtime.patch(desiredState="Running")
    step("Running", ("restore", "Removed", "Running", "success"))
    killed = runtime.kill_main_process()
    runtime.wait_other_process(killed)
    step("Running", ("restart", "Running", "Running", "success"))
    runtime.patch(env=[{"name": "NEW", "value": "1"}])
    step("Running", ("restart", "Running", "Running", "success"))
    runtime.patch(env=NO_SECRET)
    step("Failed", ("restart", "Running", "Failed", "failure"))
    runtime.patch(env=[])
    step("Running", ("start", "Failed", "Running", "success"))
    runtime.delete_and_wait()
    rows_become(stage, runtime, [*walk, ("preserve", "Running", "Preserving", "success")])


def test_a_process_that_ends_by_itself_and_may_not_be_restarted_is_stopped(stage: Stage, runtime: Runtime) -> None:
    runtime.apply(command=["/bin/sh", "-c", "echo done > /data/result"], restartPolicy="OnFailure")
    status = runtime.wait_phase("Stopped")
    assert status["lastExit"]["code"] == 0
    assert status["lastExit"]["reason"] == "Completed"
    assert runtime.condition("Ready")["reason"] == "Completed"
    started, stopped = eventually(
        lambda: stage.ledger.edges(runtime.uid),
        "both operations are told to the ledger",
        lambda rows: len(rows) == 2 and all(outcome is not None for *_, outcome in rows),
    )
    # So short a life may be over before its start is seen: then the stop follows on a start that was overtaken.
    assert (started[0], started[3]) in (("start", "success"), ("start", "superseded"))
    assert stopped == ("stop", started[2], "Stopped", "success")
    runtime.patch(command=["/bin/sh", "-c", "grep done /data/result && exec sleep 1000"])
    runtime.wait_ready()


def test_a_process_that_keeps_crashing_is_restarted_later_and_later(stage: Stage, runtime: Runtime) -> None:
    runtime.apply(command=["/bin/sh", "-c", "echo $$ >> /data/starts; exit 3"])
    runtime.wait_condition("Ready", "False", "CrashLoopBackOff")
    status = eventually(runtime.status, "three restarts", lambda seen: seen.get("restarts", 0) >= 3)
    assert status["lastExit"]["code"] == 3
    assert "exit code 3" in runtime.condition("Ready")["message"]
    runtime.patch(command=["/bin/sh", "-c", "exec sleep 1000"])
    runtime.wait_ready()
    assert len(runtime.run("cat /data/starts").split()) >= 3


def test_a_process_that_takes_too_much_memory_is_named_oom_killed(runtime: Runtime) -> None:
    runtime.apply(command=["/bin/sh", "-c", "tail /dev/zero"], restartPolicy="Never")
    status = runtime.wait_phase("Stopped")
    assert status["lastExit"]["reason"] == "OOMKilled"


@pytest.mark.parametrize("phase", ["Stopped", "Removed", "Failed"])
def test_a_deletion_begins_from_any_phase(stage: Stage, runtime: Runtime, phase: str) -> None:
    runtime.apply().wait_ready()
    runtime.run("echo kept > /data/kept")
    if phase == "Failed":
        runtime.patch(env=NO_SECRET)
    else:
        runtime.patch(desiredState=phase)
    runtime.wait_phase(phase)
    runtime.delete_and_wait()
    last_row_becomes(stage, runtime, ("preserve", phase, "Preserving", "success"))
    assert len(runtime.archives()) == 1
    runtime.apply(env=[], desiredState="Running").wait_ready()
    last_row_becomes(stage, runtime, ("restore", None, "Running", "success"))
    assert runtime.run("cat /data/kept") == "kept\n"
    runtime.patch(deletionPolicy="Purge")
    runtime.delete_and_wait()
    last_row_becomes(stage, runtime, ("purge", "Running", "Purging", "success"))


def test_what_never_ran_is_let_go_without_an_archive(stage: Stage, runtime: Runtime) -> None:
    runtime.apply(desiredState="Stopped")
    runtime.wait_phase("Stopped")
    runtime.delete_and_wait()
    last_row_becomes(stage, runtime, ("preserve", "Stopped", "Preserving", "success"))
    assert runtime.archives() == []


def test_data_that_was_taken_away_blocks_until_a_person_decides(stage: Stage, runtime: Runtime) -> None:
    runtime.apply().wait_ready()
    take_data_away(stage, runtime)
    runtime.delete()
    runtime.wait_condition("Preserved", "False", "DataMissing")
    runtime.patch(deletionPolicy="Purge")
    runtime.wait_gone()


def test_the_way_that_is_told_when_data_is_missing_leads_to_the_last_archive(
    stage: Stage, kubectl: Kubectl, runtime: Runtime
) -> None:
    runtime.apply().wait_ready()
    runtime.run("echo kept > /data/kept")
    runtime.delete_and_wait()
    runtime.apply().wait_ready()
    message = take_data_away(stage, runtime)
    for command in re.findall("`kubectl ([^`]+)`", message):
        told = kubectl(*command.split())
    assert "deleted" in told
    runtime.wait_gone()
    (archive,) = runtime.archives()
    runtime.apply(desiredState="Running")
    name = archive["metadata"]["name"]
    assert f"restore.archive: {name}" in runtime.wait_condition("Ready", "False", "OrphanPending")["message"]
    runtime.apply(restore={"policy": "Archive", "archive": name}).wait_ready()
    assert runtime.run("cat /data/kept") == "kept\n"


def take_data_away(stage: Stage, runtime: Runtime) -> str:
    """As somebody with `ctr` does; returns what its user is told then."""
    runtime.patch(desiredState="Stopped")
    runtime.wait_phase("Stopped")
    key = runtime.status()["snapshotKey"]
    stage.site.ctr("containers", "rm", runtime.container_id)  # takes the snapshot along
    runtime.patch(desiredState="Running")
    runtime.wait_phase("Blocked")
    condition = runtime.wait_condition("DataReady", "False", "DataMissing")
    assert key in condition["message"]
    assert runtime.pid() is None
    message: str = condition["message"]
    return message
