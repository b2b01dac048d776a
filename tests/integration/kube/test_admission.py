"""`deploy/admission/`: who may not bind cannot write what a binding is published with. On a real API server."""

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping

import pytest

from perdure.api.names import (
    ANNOTATION_HOST_PORTS,
    FINALIZER,
    LABEL_NAMESPACE_UID,
    LABEL_NODE,
    LABEL_NODE_ID,
)
from rig.clients import Kubectl
from rig.controlplane import ControlPlane
from rig.paths import CHECKOUT

pytestmark = pytest.mark.env

POLICY = CHECKOUT / "deploy" / "admission" / "binding.yaml"
SECONDS = 30.0
TENANT, CONTROLLER = "--as=tenant", "--as=system:serviceaccount:perdure-system:perdure-controller"
RESERVED: list[Mapping[str, object]] = [
    {"labels": {LABEL_NODE: "a"}},
    {"labels": {LABEL_NODE_ID: "id-a"}},
    {"labels": {LABEL_NAMESPACE_UID: "somebody"}},
    {"annotations": {ANNOTATION_HOST_PORTS: '{"game":7000}'}},
    {"finalizers": [FINALIZER]},
]
PUBLISHED = {
    "labels": {LABEL_NODE: "a", LABEL_NODE_ID: "id-a", LABEL_NAMESPACE_UID: "somebody"},
    "annotations": {ANNOTATION_HOST_PORTS: '{"game":7000}'},
    "finalizers": [FINALIZER],
}


@pytest.fixture(scope="module")
def admin(control_plane: ControlPlane) -> Iterator[Kubectl]:
    """The policy, at work, and a namespace in which the tenant may do anything with runtimes, and no more."""
    cluster = Kubectl(control_plane.admin_kubeconfig)
    for file in ("00-namespace.yaml", "controller.yaml"):
        cluster("apply", "-f", str(CHECKOUT / "deploy" / "rbac" / file))
    namespace = f"admission-{uuid.uuid4().hex[:12]}"
    cluster("create", "namespace", namespace)
    admin = Kubectl(control_plane.admin_kubeconfig, namespace)
    admin("create", "role", "tenant", "--verb=*", "--resource=botruntimes.perdure.dev")
    admin("create", "rolebinding", "tenant", "--role=tenant", "--user=tenant")
    cluster("apply", "-f", str(POLICY))
    try:
        eventually(lambda: "the controller's" in create(admin, TENANT, RESERVED[0]), "the policy is at work")
        assert create(admin, TENANT, {"labels": {"team": "a"}, "finalizers": ["example.com/mine"]}, "plain") == ""
        yield admin
    finally:
        cluster("delete", "-f", str(POLICY))
        admin.delete_objects()
        cluster("delete", "namespace", namespace, "--wait=false")


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {SECONDS} s: {what}"
        time.sleep(0.1)


def create(admin: Kubectl, who: str, metadata: Mapping[str, object], name: str = "") -> str:
    """What the server says against it; empty: it took it."""
    name = name or f"bot-{uuid.uuid4().hex[:12]}"
    manifest = {
        "apiVersion": "perdure.dev/v1alpha1",
        "kind": "BotRuntime",
        "metadata": {"name": name, **metadata},
        "spec": {"image": "any"},
    }
    return admin.attempt("create", who, "-f", "-", stdin=json.dumps(manifest)).stderr


def patch(admin: Kubectl, who: str, name: str, metadata: Mapping[str, object]) -> str:
    body = json.dumps({"metadata": metadata})
    return admin.attempt("patch", "botruntime", name, who, "--type=merge", "-p", body).stderr


@pytest.mark.parametrize("metadata", RESERVED, ids=str)
def test_a_tenant_cannot_write_what_publishes_a_binding(admin: Kubectl, metadata: Mapping[str, object]) -> None:
    assert "the controller's to" in create(admin, TENANT, metadata)
    assert "the controller's to" in patch(admin, TENANT, "plain", metadata)


def test_the_controller_and_administrators_write_it_and_the_tenant_goes_on_with_the_object(admin: Kubectl) -> None:
    assert create(admin, TENANT, {}, "bound") == ""
    assert patch(admin, CONTROLLER, "bound", PUBLISHED) == ""
    assert patch(admin, TENANT, "bound", {"labels": {"team": "b"}, "annotations": {"note": "mine"}}) == ""
    assert "the controller's to" in patch(admin, TENANT, "bound", {"labels": {LABEL_NAMESPACE_UID: "another"}})
    assert patch(admin, "--as=root", "bound", {"labels": {"x": "y"}}) != "", "who has no rights has none here, either"
    as_administrator = "--as-group=system:masters"
    body = json.dumps({"metadata": {"labels": {LABEL_NODE: "b"}}})
    done = admin.attempt("patch", "botruntime", "bound", "--as=root", as_administrator, "--type=merge", "-p", body)
    assert done.returncode == 0, done.stderr


def test_a_tenant_can_take_all_of_it_off(admin: Kubectl) -> None:
    assert create(admin, TENANT, {}, "leaving") == ""
    assert patch(admin, CONTROLLER, "leaving", PUBLISHED) == ""
    gone = {"labels": {LABEL_NODE_ID: None}, "annotations": {ANNOTATION_HOST_PORTS: None}, "finalizers": None}
    assert patch(admin, TENANT, "leaving", gone) == ""
