"""Absence proves nothing: objects, statuses, clusters and ledgers that are gone, wrong or old stop no process, remove no
data and start nothing empty; a condition says why."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.e2e.harness.api import Api
from tests.e2e.harness.machine import Machine, Stage, standalone
from tests.e2e.harness.processes import Operator
from tests.e2e.harness.runtimes import Runtime
from tests.e2e.harness.waiting import eventually

from rig import ports
from rig.clients import Kubectl
from rig.controlplane import PORT_USERS, ControlPlane
from rig.paths import CHECKOUT
from rig.processes import ProcessIdentity

COMMAND_SECONDS = 120


@pytest.fixture
def stage(machine: Machine, new_operator: Callable[..., Operator]) -> Iterator[Stage]:
    """A node of each test's own: what one of them does to it is meant to last."""
    with standalone(machine, new_operator) as stage:
        yield stage


@pytest.fixture
def herd(stage: Stage, kubectl: Kubectl) -> list[Runtime]:
    """More healthy runtimes than may vanish at once, with something in them."""
    runtimes = [stage.runtime(kubectl, f"sheep-{n}").apply() for n in range(5)]
    for runtime in runtimes:
        runtime.wait_ready().run(f"echo {runtime.name} > /data/name")
    return runtimes


def processes_of(herd: list[Runtime]) -> list[ProcessIdentity]:
    return [runtime.process() for runtime in herd]


def trusted(api: Api, node: str) -> dict[str, Any]:
    """The condition of a RuntimeNode that says whether its agent trusts what it is told."""
    for found in api.nodes():
        if found["metadata"]["name"] == node:
            conditions: list[dict[str, Any]] = found.get("status", {}).get("conditions", [])
            return next((condition for condition in conditions if condition["type"] == "Trusted"), {})
    return {}


def wait_frozen(stage: Stage, reason: str, api: Api | None = None) -> str:
    """Wait until the node says that it does nothing destructive, and why; returns its words."""
    condition = eventually(
        lambda: trusted(api or stage.machine.api, stage.site.name),
        f"the node is frozen by {reason}",
        lambda seen: seen.get("status") == "False" and seen.get("reason") == reason,
    )
    message: str = condition["message"]
    return message


def restart(stage: Stage, **variables: str) -> None:
    stage.operator.stop()
    stage.operator.variables |= variables
    stage.operator.start()


def wait_trusting(stage: Stage) -> None:
    eventually(
        lambda: trusted(stage.machine.api, stage.site.name),
        "the node trusts what it is told again",
        lambda seen: seen.get("status") == "True",
    )


def test_status_that_was_wiped_is_written_again_from_what_is_observed(stage: Stage, herd: list[Runtime]) -> None:
    before = processes_of(herd)
    for runtime in herd:
        runtime.kubectl("patch", runtime.resource, runtime.name, "--subresource=status", "--type=json",
                        "-p", '[{"op":"remove","path":"/status"}]')  # fmt: skip
    for runtime in herd:
        runtime.wait_ready()
        assert runtime.status()["snapshotKey"] == f"{runtime.container_id}-1"
    assert processes_of(herd) == before
    stage.operator.stop()
    for runtime in herd:
        runtime.kubectl("patch", runtime.resource, runtime.name, "--subresource=status", "--type=json",
                        "-p", '[{"op":"remove","path":"/status"}]')  # fmt: skip
    stage.operator.start()
    for runtime in herd:
        runtime.wait_ready()
    assert processes_of(herd) == before


def test_many_objects_gone_at_once_freeze_the_node_until_they_are_back(stage: Stage, herd: list[Runtime]) -> None:
    before = processes_of(herd)
    stage.operator.stop()
    kubectl = herd[0].kubectl
    doomed = stage.runtime(kubectl, "doomed")
    for runtime in herd:
        runtime.kubectl("patch", runtime.resource, runtime.name, "--type=merge", "-p", '{"metadata":{"finalizers":[]}}')
        runtime.delete()
        runtime.wait_gone()
    stage.operator.start()
    assert "5 of this node's 5 runtimes" in wait_frozen(stage, "MassAbsence")
    doomed.apply().wait_ready()
    process = doomed.process()
    doomed.delete()
    doomed.wait_condition("Degraded", "True", "MassAbsence")
    assert doomed.process() == process
    assert processes_of(herd) == before
    assert all(runtime.run("cat /data/name") == f"{runtime.name}\n" for runtime in herd)
    eventually(lambda: shows_frozen(stage, "MassAbsence"), "its metrics show it, too")


def shows_frozen(stage: Stage, reason: str) -> bool:
    _, text = stage.operator.answer("metrics")
    return f'perdure_frozen{{reason="{reason}"}} 1.0' in text


def nodes(stage: Stage, *arguments: str) -> Any:
    """What `perdure nodes` tells an administrator."""
    done = subprocess.run(
        [sys.executable, "-m", "perdure.cli.main", "nodes", *arguments, "-o", "json"],
        env={**os.environ, "KUBECONFIG": str(stage.machine.kubeconfig), "PYTHONPATH": str(CHECKOUT / "controller")},
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def heartbeat(stage: Stage) -> dict[str, Any]:
    shown: dict[str, Any] = next(it["heartbeat"] for it in nodes(stage) if it["metadata"]["name"] == stage.site.name)
    return shown


def test_an_agent_that_is_dead_is_not_shown_as_ready(stage: Stage) -> None:
    assert heartbeat(stage)["alive"]
    stage.operator.kill()
    silent = eventually(
        lambda: heartbeat(stage), "its heartbeat is missed", lambda seen: not seen["alive"], seconds=COMMAND_SECONDS
    )
    assert silent["silentSeconds"] > 40
    stage.operator.start()
    eventually(lambda: heartbeat(stage)["alive"], "its successor is alive")


def test_absence_that_a_person_accepts_holds_up_nothing_any_more(stage: Stage, herd: list[Runtime]) -> None:
    before = processes_of(herd)
    doomed = stage.runtime(herd[0].kubectl, "doomed").apply().wait_ready()
    doomed.run("echo doomed > /data/name")
    stage.operator.stop()
    for runtime in herd:
        runtime.kubectl("patch", runtime.resource, runtime.name, "--type=merge", "-p", '{"metadata":{"finalizers":[]}}')
        runtime.delete()
        runtime.wait_gone()
    stage.operator.start()
    assert "perdure nodes accept-absence" in wait_frozen(stage, "MassAbsence")
    doomed.delete()
    doomed.wait_condition("Degraded", "True", "MassAbsence")

    told: str = nodes(stage, "accept-absence", stage.site.name)[stage.site.name]["message"]
    assert told.startswith("5 runtimes without an object are accepted as gone")
    assert all(f"/{runtime.name} (uid " in told for runtime in herd)
    doomed.wait_gone()
    assert len(doomed.archives()) == 1
    wait_trusting(stage)
    assert processes_of(herd) == before
    assert all(runtime.run("cat /data/name") == f"{runtime.name}\n" for runtime in herd)

    restart(stage)
    late = stage.runtime(herd[0].kubectl, "late").apply().wait_ready()
    late.delete_and_wait()
    wait_trusting(stage)
    assert processes_of(herd) == before
    orphans = next(node for node in stage.machine.api.nodes() if node["metadata"]["name"] == stage.site.name)
    assert {orphan["name"] for orphan in orphans["status"]["orphans"]} == {runtime.name for runtime in herd}


@pytest.fixture(scope="module")
def other_cluster(machine: Machine) -> Iterator[ControlPlane]:
    """A second control plane with our CRDs, of which nothing here knows."""
    run_directory = machine.scratch / "other"
    run_directory.mkdir()
    ours = machine.environment.control_plane
    chosen = ports.remembered(run_directory, PORT_USERS, frozenset())
    plane = ControlPlane(run_directory / "data", run_directory, chosen, ours.binaries)
    plane.start()
    kubectl = Kubectl(plane.admin_kubeconfig)
    kubectl("apply", "--server-side", "-f", str(CHECKOUT / "crds"))
    kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(CHECKOUT / "crds"))
    yield plane
    plane.stop()


def test_kubeconfig_of_another_cluster_touches_nothing(
    stage: Stage, herd: list[Runtime], other_cluster: ControlPlane
) -> None:
    before, own = processes_of(herd), dict(stage.operator.variables)
    restart(stage, KUBECONFIG=str(other_cluster.admin_kubeconfig))
    message = wait_frozen(stage, "IdentityChanged", Api.of(other_cluster))
    assert "kubeconfig" in message
    assert processes_of(herd) == before
    assert all(runtime.run("cat /data/name") == f"{runtime.name}\n" for runtime in herd)
    restart(stage, **own)
    wait_trusting(stage)
    assert processes_of(herd) == before
    herd[0].delete_and_wait()
    assert len(herd[0].archives()) == 1


def test_empty_ledger_removes_nothing_and_starts_nothing_empty(
    stage: Stage, herd: list[Runtime], kubectl: Kubectl
) -> None:
    kept = stage.runtime(kubectl, "kept").apply().wait_ready()
    kept.run("echo kept > /data/kept")
    kept.delete_and_wait()
    stopped = herd.pop()
    stopped.patch(desiredState="Stopped")
    stopped.wait_phase("Stopped")
    before, own = processes_of(herd), dict(stage.operator.variables)
    restart(stage, PERDURE_DATABASE_URL=stage.machine.new_ledger().url)
    assert "ledger" in wait_frozen(stage, "IdentityChanged")
    eventually(lambda: shows_frozen(stage, "IdentityChanged"), "its metrics show it, too")

    stopped.patch(desiredState="Running")
    stopped.wait_ready()
    assert stopped.run("cat /data/name") == f"{stopped.name}\n"
    herd[0].delete()
    herd[0].wait_condition("Degraded", "True", "IdentityChanged")
    kept.apply()
    kept.wait_condition("Ready", "False", "IdentityChanged")
    assert kept.pid() is None, "a ledger that knows nothing must not make a preserved runtime start empty"
    assert processes_of(herd) == before

    restart(stage, **own)
    wait_trusting(stage)
    kept.wait_ready()
    assert kept.run("cat /data/kept") == "kept\n"
    herd[0].wait_gone()
    assert len(herd[0].archives()) == 1


def test_api_server_with_an_older_etcd_neither_stops_nor_brings_back_by_itself(
    stage: Stage, kubectl: Kubectl, restore_etcd: Callable[[], Callable[[], None]]
) -> None:
    old = stage.runtime(kubectl, "old").apply().wait_ready()
    old.run("echo old > /data/name")
    put_back = restore_etcd()
    young = stage.runtime(kubectl, "young").apply().wait_ready()
    young.run("echo young > /data/name")
    process = young.process()
    old.delete_and_wait()
    assert len(old.archives()) == 1

    stage.operator.stop()
    put_back()
    stage.operator.start()
    condition = old.wait_condition("DataReady", "False", "IdentityChanged")
    assert "earlier" in condition["message"]
    assert old.pid() is None
    assert young.read() is None
    assert young.process() == process
    old.delete_and_wait()
    old.apply().wait_ready()
    assert old.run("cat /data/name") == "old\n", "the archive is found although its object was rolled back, too"


@pytest.fixture
def restore_etcd(machine: Machine) -> Callable[[], Callable[[], None]]:
    """Takes a backup of etcd when called; what it returns puts that backup back."""
    plane = machine.environment.control_plane
    folder, backup = plane.data_directory / "etcd", machine.scratch / "etcd-backup"

    def take() -> Callable[[], None]:
        plane.stop()
        shutil.copytree(folder, backup)
        plane.start()
        return put_back

    def put_back() -> None:
        plane.stop()
        shutil.rmtree(folder)
        backup.rename(folder)
        plane.start()

    return take
