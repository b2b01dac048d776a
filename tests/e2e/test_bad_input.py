"""What people get wrong: each is told in a condition with a reason and in words, nothing is lost, nothing is left."""

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.harness.machine import Machine, Stage
from tests.e2e.harness.runtimes import Runtime
from tests.e2e.harness.waiting import eventually

from perdure.api.names import Kind
from rig.clients import Kubectl
from rig.images import Entry, Image, layer, oci_archive

FOREIGN = "perdure.dev/samples/foreign:1"
GOOD: dict[str, Any] = {"image": "perdure.dev/samples/busybox:1", "command": [], "env": [], "user": None}


def secret_env(name: str, key: str) -> list[dict[str, Any]]:
    return [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": name, "key": key}}}]


@pytest.fixture
def runtime(stage: Stage, kubectl: Kubectl) -> Runtime:
    return stage.runtime(kubectl, "oops")


@pytest.fixture(scope="module")
def foreign_image(stage: Stage, machine: Machine) -> None:
    """An image for another processor than this machine's."""
    with pytest.MonkeyPatch.context() as patched:
        here = platform.machine()
        patched.setattr(platform, "machine", lambda: "aarch64" if here == "x86_64" else "x86_64")
        archive = oci_archive(Image(FOREIGN, [layer([Entry("bin/"), Entry("bin/sh", content=b"x")])], ["/bin/sh"]))
    file: Path = machine.scratch / "foreign.tar"
    file.write_bytes(archive)
    stage.site.ctr("images", "import", "--all-platforms", "--no-unpack", file)


BAD_SPECS: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown image": ({"image": "perdure.dev/samples/absent:1"}, "PullUnsupported", "images import"),
    "malformed image": ({"image": "perdure.dev//samples/x:1"}, "InvalidSpec", "perdure.dev//samples/x:1"),
    "wrong platform": ({"image": FOREIGN}, "PlatformMismatch", "linux/"),
    "command not found": ({"command": ["/no/such/program"]}, "CommandNotFound", "/no/such/program"),
    "unknown user": ({"user": "nobody-here"}, "UserNotFound", "nobody-here"),
    "missing Secret": ({"env": secret_env("absent", "token")}, "EnvSourceMissing", "absent"),
    "words of a GiB": (
        {"command": ["/bin/true", "$(X)" * 8192], "env": [{"name": "X", "value": "v" * 130_000}]},
        "InvalidSpec",
        "command[1]",
    ),
    "missing key": ({"env": secret_env("present", "token")}, "EnvSourceMissing", "no key token"),
}


@pytest.mark.parametrize("mistake", BAD_SPECS)
@pytest.mark.usefixtures("foreign_image")
def test_mistake_in_the_spec_is_told_and_an_edit_resumes(stage: Stage, runtime: Runtime, mistake: str) -> None:
    spec, reason, words = BAD_SPECS[mistake]
    runtime.kubectl("create", "secret", "generic", "present", "--from-literal=other=1")
    runtime.apply(**spec)
    runtime.wait_phase("Failed")
    assert words in runtime.wait_condition("Ready", "False", reason)["message"]
    assert runtime.pid() is None
    runtime.patch(**GOOD)
    runtime.wait_ready()
    runtime.patch(deletionPolicy="Purge")
    runtime.delete_and_wait()
    runtime.wait_nothing_left()


@pytest.mark.parametrize("mistake", ["unknown image", "command not found", "missing Secret"])
def test_mistake_that_was_never_corrected_leaves_nothing_after_its_deletion(
    stage: Stage, runtime: Runtime, mistake: str
) -> None:
    runtime.apply(**BAD_SPECS[mistake][0])
    runtime.wait_phase("Failed")
    runtime.delete_and_wait()
    runtime.wait_nothing_left()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metadata": {"name": "x" * 64}}, "63"),
        ({"metadata": {"name": "dots.in.it"}}, "metadata.name"),
        ({"spec": {"stop": {"gracePeriodSeconds": -1}}}, "gracePeriodSeconds"),
        ({"spec": {"minReadySeconds": "soon"}}, "minReadySeconds"),
        ({"spec": {"resources": {"limits": {"memory": "lots"}}}}, "memory"),
        ({"spec": {"resources": {"limits": {"memory": "1Mi"}}}}, "memory"),
        ({"spec": {"restore": {"policy": "Archive"}}}, "archive"),
        ({"spec": {"desiredState": "Paused"}}, "desiredState"),
        ({"spec": {"image": "UPPER CASE/is no:image:name"}}, "spec.image"),
        ({"spec": {"env": [{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "metadata.colour"}}}]}}, "fieldPath"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_the_api_server(
    runtime: Runtime, change: dict[str, Any], words: str
) -> None:
    manifest = runtime.manifest()
    for part, values in change.items():
        manifest[part] = {**manifest[part], **values}
    refused = runtime.kubectl.attempt("apply", "-f", "-", stdin=json.dumps(manifest))
    assert refused.returncode != 0
    assert words in refused.stderr


def test_root_is_refused_where_the_namespace_enforces_restricted(runtime: Runtime, namespace: str) -> None:
    runtime.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    runtime.apply()
    runtime.wait_phase("Failed")
    assert "restricted" in runtime.wait_condition("Ready", "False", "PodSecurityViolation")["message"]
    runtime.patch(user="1000")
    runtime.wait_ready()
    assert Path(f"/proc/{runtime.process().pid}").stat().st_uid == 1000


# ---------------------------------------------------------------------------------------------- archives that are not there


def test_archive_that_is_not_there_is_named_and_nothing_starts_empty(stage: Stage, runtime: Runtime) -> None:
    runtime.apply(restore={"policy": "Archive", "archive": "br-oops-999"})
    runtime.wait_phase("Failed")
    assert "br-oops-999" in runtime.wait_condition("Ready", "False", "ArchiveNotFound")["message"]
    assert runtime.pid() is None
    runtime.wait_nothing_left()


def test_archive_of_another_namespace_is_not_found(stage: Stage, runtime: Runtime, machine: Machine) -> None:
    other = f"{runtime.kubectl.namespace}-other"
    machine.kubectl()("create", "namespace", other)
    try:
        neighbour = stage.runtime(machine.kubectl(other), "oops").apply().wait_ready()
        neighbour.run("echo secret > /data/secret")
        neighbour.delete_and_wait()
        (archive,) = neighbour.archives()
        runtime.apply(restore={"policy": "Archive", "archive": archive["metadata"]["name"]})
        runtime.wait_condition("Ready", "False", "ArchiveNotFound")
        runtime.delete_and_wait()
        runtime.apply(restore={"policy": "Latest"}).wait_ready()
        assert runtime.run("ls -A /data") == ""
    finally:
        machine.kubectl(other).delete_objects()
        machine.kubectl()("delete", "namespace", other, "--wait=false")


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x40
    file.write_bytes(content)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("damage", [_flip, _truncate], ids=["flipped bit", "truncated"])
def test_damaged_archive_is_put_aside_and_nothing_ever_starts_empty_instead(
    stage: Stage, runtime: Runtime, damage: Callable[[Path], None]
) -> None:
    runtime.apply().wait_ready()
    runtime.fill()
    runtime.delete_and_wait()
    (stored,) = (
        file for file in stage.site.archive_files(namespace=runtime.kubectl.namespace) if file.suffix == ".zst"
    )
    damage(stored)

    runtime.apply()
    runtime.wait_phase("Blocked")
    condition = runtime.wait_condition("Ready", "False", "ArchiveCorrupt")
    assert condition["message"]
    assert runtime.pid() is None
    assert stage.ledger.archives(runtime.archives()[0]["spec"]["source"]["uid"])[0]["state"] == "quarantined"
    assert stored.exists(), "a bad archive is kept for a person to look at"

    runtime.delete_and_wait()
    runtime.apply()
    runtime.wait_condition("Ready", "False", "ArchiveCorrupt")
    assert runtime.pid() is None, "the data is in quarantine, not gone: nobody asked for fresh data"


# ---------------------------------------------------------------------------------------------- deleted in the middle


@pytest.mark.parametrize("policy", ["Preserve", "Purge"])
def test_deleted_while_it_is_being_created(stage: Stage, runtime: Runtime, policy: str) -> None:
    runtime.apply(deletionPolicy=policy)
    runtime.delete_and_wait()
    runtime.wait_nothing_left()
    if policy == "Purge":
        assert stage.site.archive_files(namespace=runtime.kubectl.namespace) == []


def test_deleted_while_it_is_being_restored_keeps_the_archive(stage: Stage, runtime: Runtime) -> None:
    runtime.apply().wait_ready()
    runtime.fill(megabytes=24)
    notes = runtime.run("sha256sum /data/random /data/notes")
    runtime.delete_and_wait()
    for _interrupted in range(2):
        runtime.apply()
        runtime.delete_and_wait()
        runtime.wait_nothing_left()
    runtime.apply().wait_ready()
    assert runtime.run("sha256sum /data/random /data/notes") == notes


def test_purge_wished_for_while_it_is_being_preserved_purges(stage: Stage, runtime: Runtime) -> None:
    runtime.apply().wait_ready()
    runtime.fill(megabytes=24)
    runtime.delete()
    changed = runtime.kubectl.attempt(
        "patch", runtime.resource, runtime.name, "--type=merge", "-p", '{"spec":{"deletionPolicy":"Purge"}}'
    )
    runtime.wait_gone()
    runtime.wait_nothing_left()
    if changed.returncode == 0 and stage.ledger.edges(runtime.uid)[-1][0] == "purge":
        eventually(runtime.archives, "no RuntimeArchive is left", lambda left: left == [])
        assert stage.site.archive_files(namespace=runtime.kubectl.namespace) == []
    else:
        assert len(runtime.archives()) == 1


def test_object_torn_away_without_our_consent_is_an_orphan_that_runs_on(stage: Stage, runtime: Runtime) -> None:
    runtime.apply().wait_ready()
    runtime.run("echo kept > /data/kept")
    process = runtime.process()
    stage.operator.stop()
    runtime.kubectl("patch", runtime.resource, runtime.name, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    runtime.delete()
    runtime.wait_gone()
    stage.operator.start()

    def orphans() -> list[str]:
        return [entry["uid"] for node in stage.machine.api.nodes() for entry in node["status"].get("orphans", [])]

    eventually(orphans, "the orphan is listed", lambda uids: runtime.uid in uids)
    assert runtime.process() == process
    orphan_uid = runtime.uid
    runtime.apply()
    runtime.wait_condition("Ready", "False", "OrphanPending")
    assert runtime.pid() is None
    assert process.is_alive()
    assert orphan_uid in runtime.condition("Ready")["message"]
    runtime.delete_and_wait()


def test_namespace_deleted_with_everything_in_it_preserves_the_data(stage: Stage, machine: Machine, kind: Kind) -> None:
    name = f"e2e-doomed-{kind.short}"
    machine.kubectl()("create", "namespace", name)
    runtime = stage.runtime(machine.kubectl(name), "inhabitant", kind).apply().wait_ready()
    runtime.run("echo kept > /data/kept")
    machine.kubectl()("delete", "namespace", name, "--wait=false")
    runtime.wait_gone()
    (row,) = stage.ledger.archives(runtime.uid)
    assert row["state"] == "verified"
    assert len(stage.site.archive_files(namespace=name)) == 2
    runtime.wait_nothing_left()
    eventually(lambda: machine.api.get(f"api/v1/namespaces/{name}"), "the namespace is gone", lambda found: not found)


def test_object_released_by_force_leaves_its_data_pinned(stage: Stage, runtime: Runtime) -> None:
    runtime.apply().wait_ready()
    runtime.run("echo kept > /data/kept")
    key = runtime.status()["snapshotKey"]
    runtime.annotate(force_release="the store is lost")
    runtime.delete_and_wait()
    released = runtime.uid
    eventually(
        lambda: stage.site.things_of(released),
        "only the data is left",
        lambda left: (
            [thing for thing in left if not thing.startswith("file")] == [f"lease ws-{key}", f"snapshot {key}"]
        ),
    )
    assert stage.ledger.archives(released) == []
    runtime.apply()
    assert released in runtime.wait_condition("Ready", "False", "OrphanPending")["message"]
    runtime.delete_and_wait()
    runtime.apply(restore={"policy": "None"}).wait_ready()
    assert runtime.run("ls -A /data") == ""
