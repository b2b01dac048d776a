"""Processes with the rights that `deploy/rbac` grants and no others, as real users of the cluster."""

from collections.abc import Callable

from tests.e2e.harness.machine import Machine
from tests.e2e.harness.processes import Operator
from tests.e2e.harness.runtimes import Runtime

from rig.clients import Kubectl
from rig.paths import CHECKOUT

AGENT, CONTROLLER = "e2e-agent", "e2e-controller"


def test_agent_that_may_not_read_secrets_names_the_right_that_it_lacks(
    machine: Machine, new_operator: Callable[..., Operator], kubectl: Kubectl
) -> None:
    cluster, system = machine.kubectl(), machine.kubectl("perdure-system")
    cluster("apply", "-f", str(CHECKOUT / "deploy" / "rbac"))
    for user, role in ((AGENT, "perdure-agent"), (CONTROLLER, "perdure-controller")):
        cluster("create", "clusterrolebinding", user, f"--clusterrole={role}", f"--user={user}")
        system("create", "rolebinding", user, f"--role={role}", f"--user={user}")
    site, ledger = machine.new_site(), machine.new_ledger()
    plane = machine.environment.control_plane
    controller = new_operator("controller", ledger, KUBECONFIG=str(plane.kubeconfig(CONTROLLER)))
    agent = new_operator("agent", ledger, site, KUBECONFIG=str(plane.kubeconfig(AGENT)))
    try:
        controller.start()
        agent.start()
        kubectl("create", "secret", "generic", "present", "--from-literal=token=1")
        runtime = Runtime(kubectl, machine.api, site, "curious")
        selector = {"secretKeyRef": {"name": "present", "key": "token"}}
        runtime.apply(env=[{"name": "TOKEN", "valueFrom": selector}])
        message = runtime.wait_condition("Ready", "False", "EnvSourceForbidden")["message"]
        assert "present" in message
        assert "get" in message
        cluster("create", "clusterrolebinding", f"{AGENT}-env", "--clusterrole=perdure-agent-env", f"--user={AGENT}")
        runtime.wait_ready()
        assert runtime.environment()["TOKEN"] == "1"
        runtime.delete_and_wait()
        assert len(runtime.archives()) == 1
    finally:
        agent.stop()
        controller.stop()
        cluster("delete", "clusterrolebinding", AGENT, CONTROLLER, f"{AGENT}-env", "--ignore-not-found")
        system("delete", "rolebinding", AGENT, CONTROLLER, "--ignore-not-found")
        machine.forget_nodes()
        site.clear()
