"""One controller and two agents, each with an engine and folders of its own: who gets what, and where data comes back."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from tests.e2e.harness.api import Json
from tests.e2e.harness.ledger import Ledger
from tests.e2e.harness.machine import Machine
from tests.e2e.harness.processes import Operator
from tests.e2e.harness.runtimes import Runtime
from tests.e2e.harness.site import Site
from tests.e2e.harness.waiting import eventually

from rig.clients import Kubectl
from rig.containerd import Containerd
from rig.filetree import difference


@dataclass(slots=True)
class Cluster:
    """Both nodes. A runtime is made with the site that it is expected on."""

    machine: Machine
    first: Site
    second: Site
    second_agent: Operator

    def runtime(self, kubectl: Kubectl, name: str, site: Site, **spec: object) -> Runtime:
        return Runtime(kubectl, self.machine.api, site, name, spec=dict(spec))

    def other(self, site: Site) -> Site:
        return self.second if site is self.first else self.first

    def is_only_on(self, runtime: Runtime, site: Site) -> bool:
        """Whether everything of a runtime is on one node, and nothing on the other."""
        return bool(site.things_of(runtime.uid)) and self.other(site).things_of(runtime.uid) == []


@pytest.fixture(scope="module")
def second_engine(machine: Machine) -> Iterator[Containerd]:
    folder = machine.scratch / "engine2"
    engine = Containerd(folder / "data", folder / "run", f"{machine.environment.cgroup_parent}/second")
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def cluster(machine: Machine, second_engine: Containerd, new_operator: Callable[..., Operator]) -> Iterator[Cluster]:
    ledger: Ledger = machine.new_ledger()
    first, second = machine.new_site(), machine.new_site(second_engine)
    operators = [new_operator("controller", ledger), *(new_operator("agent", ledger, site) for site in (first, second))]
    for operator in operators:
        operator.start()
    yield Cluster(machine, first, second, operators[2])
    for operator in operators:
        operator.stop()
    first.clear()
    second.clear()
    machine.forget_nodes()


@pytest.fixture(params=["first", "second"])
def site(cluster: Cluster, request: pytest.FixtureRequest) -> Site:
    found: Site = getattr(cluster, request.param)
    return found


def test_a_node_gets_what_names_or_selects_it_and_nothing_else(cluster: Cluster, kubectl: Kubectl, site: Site) -> None:
    named = cluster.runtime(kubectl, "named", site, nodeName=site.name).apply().wait_ready()
    selecting = cluster.runtime(kubectl, "selecting", site, nodeSelector={"kubernetes.io/hostname": site.name})
    selecting.apply().wait_ready()
    for runtime in (named, selecting):
        assert runtime.status()["nodeName"] == site.name
        assert cluster.is_only_on(runtime, site)


def test_a_node_tells_what_the_machine_has_and_what_of_it_is_offered(cluster: Cluster, site: Site) -> None:
    (status,) = (node["status"] for node in cluster.machine.api.nodes() if node["metadata"]["name"] == site.name)
    assert status["allocatable"] == {"cpu": "64000m", "memory": str(64 * 2**30)}, "as the harness offers"
    assert status["capacity"]["cpu"] == f"{(os.cpu_count() or 1) * 1000}m"
    assert status["capacity"]["memory"] == str(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def test_runtimes_are_spread_by_load(cluster: Cluster, kubectl: Kubectl) -> None:
    runtimes = [cluster.runtime(kubectl, f"any-{n}", cluster.first).apply() for n in range(4)]
    for runtime in runtimes:
        runtime.wait_ready()
    nodes = [runtime.status()["nodeName"] for runtime in runtimes]
    assert sorted(nodes) == sorted([cluster.first.name, cluster.second.name] * 2)


def test_preserved_data_comes_back_on_the_node_that_has_its_archive(
    cluster: Cluster, kubectl: Kubectl, site: Site
) -> None:
    runtime = cluster.runtime(kubectl, "homing", site, nodeName=site.name).apply().wait_ready()
    runtime.fill()
    files = runtime.tree()
    runtime.delete_and_wait()

    elsewhere = cluster.other(site)
    runtime.apply(nodeName=elsewhere.name)
    condition = runtime.wait_condition("Scheduled", "False")
    assert condition["reason"] in ("Unschedulable", "ArchiveNotReachable")
    assert "archive" in condition["message"]
    assert runtime.status()["phase"] == "Pending"
    assert elsewhere.things_of(runtime.uid) == []
    runtime.delete_and_wait()

    heavy = {"requests": {"cpu": "20"}, "limits": {"cpu": "20"}}
    cluster.runtime(kubectl, "heavy", site, nodeName=site.name, resources=heavy).apply().wait_ready()
    del runtime.spec["nodeName"]
    runtime.apply().wait_ready()
    assert cluster.is_only_on(runtime, site)
    assert difference(files, runtime.tree()) == []


def test_what_fits_nowhere_says_why_and_is_bound_once_it_does(cluster: Cluster, kubectl: Kubectl) -> None:
    runtime = cluster.runtime(kubectl, "picky", cluster.first, nodeSelector={"disk": "fast"}).apply()
    condition = runtime.wait_condition("Scheduled", "False", "Unschedulable")
    assert "2 not matching spec.nodeSelector" in condition["message"]
    huge = cluster.runtime(
        kubectl, "huge", cluster.first, resources={"requests": {"cpu": "999"}, "limits": {"cpu": "999"}}
    ).apply()
    assert "room" in huge.wait_condition("Scheduled", "False", "Unschedulable")["message"]
    nodes = cluster.machine.kubectl()
    nodes("label", "runtimenode", cluster.first.name, "disk=fast")
    runtime.wait_ready()


def test_a_cordoned_node_keeps_what_it_has_and_gets_nothing_new(cluster: Cluster, kubectl: Kubectl) -> None:
    kept = cluster.runtime(kubectl, "kept", cluster.first, nodeName=cluster.first.name).apply().wait_ready()
    process = kept.process()
    nodes = cluster.machine.kubectl()
    nodes("patch", "runtimenode", cluster.first.name, "--type=merge", "-p", '{"spec":{"unschedulable":true}}')
    eventually(
        lambda: [
            node["spec"] for node in cluster.machine.api.nodes() if node["metadata"]["name"] == cluster.first.name
        ],
        "the node is cordoned",
        lambda specs: specs == [{"unschedulable": True}],
    )
    for n in range(2):
        moved = cluster.runtime(kubectl, f"moved-{n}", cluster.second).apply().wait_ready()
        assert cluster.is_only_on(moved, cluster.second)
    assert kept.process() == process
    nodes("patch", "runtimenode", cluster.first.name, "--type=merge", "-p", '{"spec":{"unschedulable":false}}')


def test_who_was_on_a_node_that_is_lost_starts_empty_elsewhere_and_the_node_may_return(
    cluster: Cluster, kubectl: Kubectl
) -> None:
    """docs/operations.md, A node is gone for good. Its engine goes on here, as it does where only a network is gone."""
    lost, nodes = cluster.second, cluster.machine.kubectl()
    runtime = cluster.runtime(kubectl, "bereft", lost, nodeName=lost.name).apply().wait_ready()
    runtime.fill()
    runtime.delete_and_wait()
    runtime.apply().wait_ready()
    process, left_behind = runtime.process(), runtime.container_id

    def there() -> Json:
        return next((node for node in cluster.machine.api.nodes() if node["metadata"]["name"] == lost.name), {})

    cluster.second_agent.stop()
    nodes("annotate", "rn", lost.name, "perdure.dev/out-of-service=its disk is dead")
    listed = nodes("get", "br,gr", "-A", "-l", f"perdure.dev/node={lost.name}", "-o", "name")
    assert f"botruntime.perdure.dev/{runtime.name}" in listed.split()
    assert runtime.status()["phase"] == "Running", "as its agent said last"
    runtime.annotate(force_release="node lost")
    runtime.delete_and_wait()
    given_up = runtime.uid
    del runtime.spec["nodeName"]
    runtime.apply()
    refused = runtime.wait_condition("Scheduled", "False")
    assert "bring the node with the archive back, or set restore.policy: None" in refused["message"]
    nodes("delete", "rn", lost.name)
    runtime.site = cluster.first
    runtime.patch(restore={"policy": "None"})
    runtime.wait_ready()
    assert runtime.run("ls -A /data") == ""

    cluster.second_agent.start()
    eventually(
        there,
        "what it still has is an orphan",
        lambda node: given_up in [orphan["uid"] for orphan in node.get("status", {}).get("orphans", [])],
    )
    eventually(process.is_alive, "what was given up is stopped", lambda alive: not alive)
    eventually(lambda: left_behind in lost.ctr("containers", "ls", "-q"), "its container goes", lambda there: not there)
    assert any(thing.startswith("snapshot") for thing in lost.things_of(given_up))
