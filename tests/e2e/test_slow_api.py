"""An API server that keeps all requests of one kind waiting: what must be renewed in time is."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.e2e.harness.machine import Machine
from tests.e2e.harness.processes import Operator
from tests.e2e.harness.runtimes import Runtime
from tests.e2e.harness.site import Site
from tests.e2e.harness.slow_api import SlowApi, slow_api
from tests.e2e.harness.waiting import eventually

from perdure.kube.client import CONNECTIONS
from perdure.kube.lease import LEADER_LEASE
from rig.clients import Kubectl

RENEWALS = 2


@pytest.fixture
def site(machine: Machine) -> Iterator[Site]:
    site = machine.new_site()
    yield site
    site.clear()
    machine.forget_nodes()


@pytest.fixture
def api(machine: Machine, namespace: str) -> Iterator[SlowApi]:
    """Nobody hears anything of the test's namespace."""
    with slow_api(machine.environment.control_plane, f"/api/v1/namespaces/{namespace}") as api:
        yield api


@pytest.mark.parametrize("role", ["standalone", "controller"])
def test_leases_are_renewed_while_every_other_connection_waits_for_an_answer(
    role: str,
    machine: Machine,
    site: Site,
    api: SlowApi,
    kubectl: Kubectl,
    new_operator: Callable[..., Operator],
    tmp_path: Path,
) -> None:
    kubeconfig = api.write_kubeconfig(tmp_path / "kubeconfig")
    is_node = role == "standalone"
    operator = new_operator(role, machine.new_ledger(), site if is_node else None, KUBECONFIG=str(kubeconfig))
    operator.start()
    wanted = {LEADER_LEASE, f"node-{site.name}"} if is_node else {LEADER_LEASE}
    for number in range(2 * CONNECTIONS):
        Runtime(kubectl, machine.api, site, f"asks-{number}").apply()

    def renewed_meanwhile() -> Counter[str]:
        assert operator.identity() is not None, "it goes on"
        return Counter(name for name, held in api.writes if held >= CONNECTIONS)

    eventually(
        renewed_meanwhile,
        "Leases are renewed while all connections wait",
        lambda seen: all(seen[name] >= RENEWALS for name in wanted),
    )
    operator.stop()
