"""Main processes that ignore the stop signal: they are waited for as long as they may be, by nobody who is needed elsewhere."""

from __future__ import annotations

import re

import pytest
from tests.e2e.harness.machine import Stage
from tests.e2e.harness.runtimes import Runtime
from tests.e2e.harness.waiting import eventually

from rig.clients import Kubectl

COUNTS_TERM = ["/bin/sh", "-c", "trap 'echo TERM >> /data/signals' TERM; : > /data/signals; while :; do sleep 1; done"]
DAY = {"gracePeriodSeconds": 86_400}


@pytest.fixture
def deaf(stage: Stage, kubectl: Kubectl) -> Runtime:
    """Its main process has set its signals up."""
    runtime = stage.runtime(kubectl, "deaf").apply(command=COUNTS_TERM, stop=DAY).wait_ready()
    eventually(lambda: runtime.run("ls /data"), "it ignores SIGTERM", lambda files: "signals" in files)
    return runtime


def signals(runtime: Runtime) -> int:
    """How often it was told to stop."""
    return runtime.run("cat /data/signals").count("TERM")


def stop(runtime: Runtime) -> None:
    runtime.patch(desiredState="Stopped")
    runtime.wait_phase("Stopping")
    told = runtime.wait_condition("Ready", "False", "InProgress")["message"]
    assert "SIGKILL follows the stop signal after 86400 s" in told


def test_a_lower_grace_counts_at_once(deaf: Runtime) -> None:
    process = deaf.process()
    stop(deaf)
    assert deaf.process() == process
    deaf.patch(stop={"gracePeriodSeconds": 1})
    status = deaf.wait_phase("Stopped", seconds=15)
    assert (status["lastExit"]["signal"], status["restarts"]) == (9, 0)


def test_a_restart_of_the_agent_does_not_begin_the_stop_again(stage: Stage, deaf: Runtime) -> None:
    process = deaf.process()
    stop(deaf)
    eventually(lambda: signals(deaf), "the signal came", lambda count: count == 1)
    # Killed between the signal and its record, it would send it again, and rightly so.
    on_record = rf'"uid": "{deaf.uid}".*"event": "stop_asked"'
    eventually(stage.operator.log, "it is on record", lambda log: re.search(on_record, log) is not None)
    stage.operator.kill()
    deaf.patch(stop={"gracePeriodSeconds": 86_000})
    stage.operator.start()
    deaf.wait_phase("Stopping")
    assert (deaf.process(), signals(deaf)) == (process, 1)
    stage.operator.kill()
    deaf.patch(stop={"gracePeriodSeconds": 1})
    stage.operator.start()
    assert deaf.wait_phase("Stopped")["lastExit"]["signal"] == 9


def test_what_is_wanted_again_is_stopped_first_and_then_started(deaf: Runtime) -> None:
    process = deaf.process()
    stop(deaf)
    deaf.patch(desiredState="Running")
    deaf.wait_phase("Stopping")
    assert deaf.process() == process
    deaf.patch(stop={"gracePeriodSeconds": 0})
    deaf.wait_other_process(process)
    assert deaf.wait_ready().status()["restarts"] == 0


def test_a_deletion_goes_on_with_the_stop_that_was_begun(deaf: Runtime) -> None:
    stop(deaf)
    deaf.delete()
    deaf.wait_phase("Preserving")
    deaf.patch(stop={"gracePeriodSeconds": 0})
    deaf.wait_gone()
    (archive,) = deaf.archives()
    assert archive["status"]["sequence"]
    deaf.wait_nothing_left()
