"""Somebody writes the finalizer and the labels of a binding by hand, with the uid of another's namespace, and purges."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from tests.e2e.harness.machine import Machine, Stage
from tests.e2e.harness.runtimes import Runtime
from tests.e2e.harness.waiting import eventually

from perdure.api.names import FINALIZER, LABEL_NAMESPACE_UID, LABEL_NODE, LABEL_NODE_ID
from rig.clients import Kubectl


@pytest.fixture
def victim(stage: Stage, kubectl: Kubectl) -> Runtime:
    """A runtime that was deleted, and whose data is kept."""
    victim = stage.runtime(kubectl, "ada")
    victim.apply().wait_ready()
    victim.run("echo precious > /data/notes")
    victim.delete_and_wait()
    assert len(victim.archives()) == 1
    return victim


@pytest.fixture
def elsewhere(machine: Machine) -> Iterator[Kubectl]:
    """Somebody else's namespace."""
    name = f"e2e-{uuid.uuid4().hex[:12]}"
    machine.kubectl()("create", "namespace", name)
    yield machine.kubectl(name)
    machine.kubectl(name).delete_objects()
    machine.kubectl()("delete", "namespace", name, "--wait=false", "--ignore-not-found")


def forge(stage: Stage, elsewhere: Kubectl, victim: Runtime, **spec: Any) -> Runtime:
    """The victim's name, and all that the controller writes when it binds."""
    node = elsewhere.get("runtimenode", stage.site.name)
    namespace = elsewhere.get("namespace", str(victim.kubectl.namespace))
    forged = stage.runtime(elsewhere, victim.name, **spec)
    manifest = forged.manifest()
    manifest["metadata"] |= {
        "finalizers": [FINALIZER],
        "labels": {
            LABEL_NODE: stage.site.name,
            LABEL_NODE_ID: node["status"]["nodeID"],
            LABEL_NAMESPACE_UID: namespace["metadata"]["uid"],
        },
    }
    elsewhere.apply(manifest)
    found = forged.read()
    assert found is not None
    forged.uid = found["metadata"]["uid"]
    return forged


def warnings_about(forged: Runtime) -> list[str]:
    events = forged.kubectl.get("events")["items"]
    return [
        event["reason"]
        for event in events
        if event["type"] == "Warning" and event["involvedObject"]["uid"] == forged.uid
    ]


def is_untouched(victim: Runtime) -> None:
    """The victim's archive is listed, stored, and comes back."""
    (archive,) = victim.archives()
    assert archive["status"]["phase"] == "Verified"
    victim.apply().wait_ready()
    assert victim.run("cat /data/notes") == "precious\n"


def test_a_forged_binding_restores_and_purges_nothing_of_others(
    stage: Stage, victim: Runtime, elsewhere: Kubectl
) -> None:
    forged = forge(stage, elsewhere, victim, deletionPolicy="Purge")
    forged.wait_ready()
    assert "notes" not in forged.run("ls /data")
    found = forged.read()
    assert found is not None
    own = elsewhere.get("namespace", str(elsewhere.namespace))["metadata"]["uid"]
    assert found["metadata"]["labels"][LABEL_NAMESPACE_UID] == own
    eventually(lambda: warnings_about(forged), "it is told why", lambda told: "NotBound" in told)
    forged.delete_and_wait()
    is_untouched(victim)


def test_a_forged_binding_that_nothing_can_be_made_of_is_told_why_and_can_be_deleted(
    stage: Stage, victim: Runtime, elsewhere: Kubectl
) -> None:
    forged = forge(stage, elsewhere, victim, deletionPolicy="Purge", nodeSelector={"no": "node"})
    for type_ in ("Scheduled", "Ready"):
        assert "by hand" in forged.wait_condition(type_, "False", "NotBound")["message"]
    assert stage.site.things_of(forged.uid) == []
    forged.delete_and_wait()
    is_untouched(victim)
