"""Processes that are killed at random instants: whatever was under way ends as if nobody had been killed.

A bystander runs all the while; its main process must keep its pid. `hack/chaos kills` plays the same rounds for hours.
"""

from collections.abc import Callable, Iterator

import pytest
from tests.e2e.harness.machine import Machine, Stage
from tests.e2e.harness.processes import Operator
from tests.e2e.harness.rounds import ACTIVITIES, Arena, play
from tests.e2e.harness.runtimes import Runtime
from tests.e2e.harness.waiting import eventually

from rig.clients import Kubectl
from rig.processes import Daemon

ROUNDS = 2
SEED = 20260101


@pytest.fixture(scope="module")
def stage(machine: Machine, new_operator: Callable[..., Operator]) -> Iterator[Stage]:
    """A controller and an agent as processes of their own."""
    site, ledger = machine.new_site(), machine.new_ledger()
    controller, agent = new_operator("controller", ledger), new_operator("agent", ledger, site)
    controller.start()
    agent.start()
    yield Stage(machine, site, ledger, agent, controller)
    agent.stop()
    controller.stop()
    site.clear()
    machine.forget_nodes()


@pytest.fixture
def bystander(stage: Stage, kubectl: Kubectl) -> Iterator[Runtime]:
    """A healthy runtime, whose main process must be the same one at the end."""
    runtime = stage.runtime(kubectl, "bystander").apply().wait_ready()
    process = runtime.process()
    yield runtime
    assert runtime.process() == process, "the main process of a healthy runtime was restarted"
    runtime.wait_ready()
    assert runtime.status()["restarts"] == 0


@pytest.mark.parametrize("activity", ACTIVITIES)
@pytest.mark.usefixtures("bystander")
def test_agent_killed_at_any_instant_ends_in_the_same_state(stage: Stage, kubectl: Kubectl, activity: str) -> None:
    arena = Arena(stage.operator, lambda name: stage.runtime(kubectl, name), SEED)
    for number in range(ROUNDS):
        play(arena, activity, number)


@pytest.mark.usefixtures("bystander")
def test_controller_killed_and_started_again_restarts_no_runtime(stage: Stage, kubectl: Kubectl) -> None:
    controller = stage.controller
    assert controller is not None
    controller.kill()
    runtime = stage.runtime(kubectl, "late").apply()
    stage.machine.forget_leader()
    controller.start()
    runtime.wait_ready()


@pytest.mark.parametrize("part", ["kube-apiserver", "etcd", "postgres"])
@pytest.mark.usefixtures("bystander")
def test_restart_of_a_part_restarts_no_runtime(stage: Stage, kubectl: Kubectl, part: str) -> None:
    daemon = _daemon(stage.machine, part)
    daemon.kill()
    daemon.start()
    daemon.wait_ready()
    eventually(lambda: kubectl.attempt("get", "namespaces").returncode, "the API serves", lambda code: code == 0)
    if stage.controller is not None:
        stage.controller.supervise()  # it ends when it could not renew its Lease in time, as Kubernetes' own do
    stage.runtime(kubectl, "after").apply().wait_ready()


def _daemon(machine: Machine, part: str) -> Daemon:
    environment = machine.environment
    daemons = (*environment.control_plane.daemons, environment.database.daemon)
    (found,) = (daemon for daemon in daemons if daemon.name == part)
    return found
