"""Parts that are away, at start and in the middle: what runs goes on running, what is not certain waits and says so."""

import json
from collections.abc import Iterator

import pytest
from tests.e2e.harness.machine import Stage
from tests.e2e.harness.runtimes import Runtime
from tests.e2e.harness.waiting import eventually

from rig.clients import Kubectl
from rig.processes import Daemon


@pytest.fixture
def runtime(stage: Stage, kubectl: Kubectl) -> Runtime:
    return stage.runtime(kubectl, "hardy").apply().wait_ready()


@pytest.fixture
def database(stage: Stage) -> Iterator[Daemon]:
    yield from _served_again(stage, stage.machine.environment.database.daemon)


@pytest.fixture
def engine(stage: Stage) -> Iterator[Daemon]:
    yield from _served_again(stage, stage.site.engine.daemon)


@pytest.fixture
def apiserver(stage: Stage) -> Iterator[Daemon]:
    yield from _served_again(stage, stage.machine.environment.control_plane.apiserver)


def _served_again(stage: Stage, daemon: Daemon) -> Iterator[Daemon]:
    """Whatever a test did, the part serves afterwards, and the operator is ready for the next test."""
    yield daemon
    _start(daemon)
    stage.operator.supervise()


def _start(daemon: Daemon) -> None:
    daemon.start()
    daemon.wait_ready()


def _check(stage: Stage, name: str) -> dict[str, object]:
    """What /readyz says of one part."""
    _code, body = stage.operator.answer("readyz")
    found: dict[str, object] = json.loads(body)["checks"][name] if body.startswith("{") else {}
    return found


def test_with_the_api_server_away_crashes_are_restarted_for_as_long_as_it_takes(
    stage: Stage, runtime: Runtime, apiserver: Daemon
) -> None:
    apiserver.kill()
    for _crash in range(5):  # the last back-off alone is longer than a Lease may stay without being renewed
        runtime.wait_other_process(runtime.kill_main_process())
    _start(apiserver)
    eventually(runtime.status, "the restarts are told", lambda seen: seen.get("restarts") == 5)
    runtime.wait_ready()
    assert stage.operator.starts == 1


def test_with_the_ledger_away_what_is_known_runs_and_what_is_not_waits(
    stage: Stage, kubectl: Kubectl, runtime: Runtime, database: Daemon
) -> None:
    runtime.run("echo kept > /data/kept")
    doomed = stage.runtime(kubectl, "doomed").apply().wait_ready()
    doomed.run("echo precious > /data/precious")
    process = doomed.process()
    database.kill()

    runtime.wait_other_process(runtime.kill_main_process())
    runtime.patch(desiredState="Stopped")
    runtime.wait_phase("Stopped")
    runtime.patch(desiredState="Running")
    runtime.wait_phase("Running")
    assert runtime.run("cat /data/kept") == "kept\n"

    late = stage.runtime(kubectl, "late").apply()
    late.wait_condition("Ready", "False", "LedgerUnavailable")
    doomed.delete()
    doomed.wait_condition("Preserved", "False", "LedgerUnavailable")
    assert doomed.process() == process

    _start(database)
    late.wait_ready()
    doomed.wait_gone()
    assert len(doomed.archives()) == 1
    rows = eventually(
        lambda: stage.ledger.edges(runtime.uid),
        "the rows of the outage are in the ledger",
        lambda found: len(found) == 4 and all(row[3] for row in found),
    )
    assert [row[0] for row in rows] == ["start", "restart", "stop", "start"]


def test_with_the_engine_away_nothing_is_believed_and_nothing_is_restarted(
    stage: Stage, kubectl: Kubectl, runtime: Runtime, engine: Daemon
) -> None:
    process = runtime.process()
    engine.kill()
    late = stage.runtime(kubectl, "late").apply()
    condition = late.wait_condition("Ready", "Unknown", "EngineUnavailable")
    assert condition["message"]
    assert process.is_alive()
    _start(engine)
    late.wait_ready()
    assert runtime.process() == process
    runtime.wait_ready()
    assert runtime.status()["restarts"] == 0


@pytest.mark.parametrize("part", ["database", "engine"])
def test_a_part_that_is_away_at_start_is_waited_for_and_named(
    stage: Stage, kubectl: Kubectl, runtime: Runtime, request: pytest.FixtureRequest, part: str
) -> None:
    process = runtime.process()
    daemon: Daemon = request.getfixturevalue(part)
    check = {"database": "ledger", "engine": "engine"}[part]
    stage.operator.stop()
    daemon.kill()
    stage.operator.start(ready=False)
    named = eventually(lambda: _check(stage, check), f"{check} is named", lambda seen: bool(seen.get("detail")))
    assert named["passed"] is False
    assert process.is_alive()
    _start(daemon)
    stage.operator.wait_ready()
    assert runtime.process() == process
    stage.runtime(kubectl, "after").apply().wait_ready()
