"""What is stopped is cleaned up when its time is over, when somebody asks, or when it is to be removed, and comes back whole.

On real parts: the engine's own view decides what is left, the ledger tells what was done and who wanted it.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime

import pytest
from tests.e2e.harness.machine import Stage
from tests.e2e.harness.runtimes import Runtime
from tests.e2e.harness.waiting import always, eventually

from perdure.api.names import Kind
from rig.clients import Kubectl
from rig.filetree import difference
from rig.paths import CHECKOUT

Row = tuple[str, str, str | None, str]
COMMAND_SECONDS = 90


@pytest.fixture
def perdure(stage: Stage) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line, as the administrator."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "perdure.cli.main", *arguments],
            env={
                **os.environ,
                "KUBECONFIG": str(stage.machine.kubeconfig),
                "PYTHONPATH": str(CHECKOUT / "controller"),
            },
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    return run


def cleanups(stage: Stage, runtime: Runtime) -> list[Row]:
    """(source, phase after, outcome, code) of all clean-ups of one life."""
    return [
        (row["source"], row["after"], row["outcome"], row["error_code"] or "")
        for row in stage.ledger.operations(runtime.uid)
        if row["op"] == "cleanup_container" and row["outcome"] is not None
    ]


def is_cleaned_up(stage: Stage, runtime: Runtime, reason: str, *rows: Row) -> None:
    """Nothing of it is on the node but its archive; the object, the ledger and the archive tell the same."""
    status = runtime.wait_phase("Removed")
    assert runtime.condition("Ready")["reason"] == reason
    assert runtime.condition("Preserved")["status"] == "True"
    assert {
        thing for thing in stage.site.things_of(runtime.uid) if not (thing.startswith("file") and "/logs/" in thing)
    } == set()
    assert "snapshotKey" not in status
    assert "expiresAt" not in status
    eventually(lambda: cleanups(stage, runtime), "the ledger tells it", lambda seen: seen == list(rows))
    eventually(
        lambda: [archive["metadata"]["name"] for archive in runtime.archives()],
        "its archive is listed",
        lambda names: status["lastArchive"] in names,
    )
    newest = stage.ledger.archives(runtime.uid)[-1]
    assert newest["object_name"] == status["lastArchive"]
    stored = {hashlib.sha256(path.read_bytes()).hexdigest() for path in stage.site.archive_files()}
    assert newest["sha256"] in stored


def resource_version(runtime: Runtime) -> str:
    found = runtime.read()
    assert found is not None
    version: str = found["metadata"]["resourceVersion"]
    return version


def nothing_is_written(runtime: Runtime, seconds: float) -> None:
    version, until = resource_version(runtime), time.monotonic() + seconds
    always(
        lambda: resource_version(runtime),
        f"{runtime.name} is left as it is",
        lambda seen: seen == version,
        lambda: time.monotonic() > until,
    )


def test_when_its_time_is_over_it_is_archived_removed_and_comes_back_whole(
    stage: Stage, kubectl: Kubectl, kind: Kind
) -> None:
    runtime = stage.runtime(kubectl, "ida", kind)
    runtime.apply(stoppedTTL="6s").wait_ready()
    assert "expiresAt" not in runtime.status()
    runtime.fill()
    files = runtime.tree()
    runtime.patch(desiredState="Stopped")
    status = runtime.wait_phase("Stopped")
    kept = datetime.fromisoformat(status["expiresAt"]) - datetime.fromisoformat(status["stoppedAt"])
    assert 5 <= kept.total_seconds() <= 7
    nothing_is_written(runtime, 3)
    is_cleaned_up(stage, runtime, "Expired", ("auto_ttl", "Removed", "success", ""))
    (row,) = [row for row in stage.ledger.operations(runtime.uid) if row["op"] == "cleanup_container"]
    assert row["started_at"].timestamp() >= datetime.fromisoformat(status["stoppedAt"]).timestamp() + 6
    runtime.patch(desiredState="Running")
    runtime.wait_ready()
    assert difference(files, runtime.tree()) == []
    assert stage.ledger.edges(runtime.uid)[-1] == ("restore", "Removed", "Running", "success")


def test_what_one_edit_or_request_brings_about_is_found_together(
    stage: Stage, kubectl: Kubectl, perdure: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    runtime = stage.runtime(kubectl, "kim").apply().wait_ready()
    runtime.patch(desiredState="Removed")
    runtime.wait_phase("Removed")
    eventually(lambda: cleanups(stage, runtime), "the ledger tells it", lambda seen: len(seen) == 1)
    rows = {row["op"]: row["correlation"] for row in stage.ledger.operations(runtime.uid)}
    assert rows["stop"] == rows["cleanup_container"] != rows["start"]
    asked = perdure(*("history", "-A", "--correlation", rows["stop"], "-o", "json", "--database-url", stage.ledger.url))
    assert asked.returncode == 0, asked.stderr
    assert {row["op"] for row in json.loads(asked.stdout)} == {"stop", "cleanup_container"}
    answer = perdure(
        "cleanup", f"{runtime.kind.short}/{runtime.name}", "-n", runtime.kubectl.namespace or "", "-o", "json"
    )
    assert answer.returncode == 0, answer.stderr
    (id_,) = (json.loads(answer.stdout)["id"],)
    eventually(lambda: cleanups(stage, runtime), "the answer is told, too", lambda seen: len(seen) == 2)
    assert stage.ledger.operations(runtime.uid)[-1]["correlation"] == id_


def another_node_is_at_work(stage: Stage, runtime: Runtime, seconds: int) -> None:
    """It holds the lease of this runtime, and dies with it."""
    stage.ledger.execute(
        "INSERT INTO leases (installation, key, holder, token, fence, expires_at) "
        f"SELECT installation, uid, 'node-b', 'theirs', nextval('fences'), now() + interval '{seconds} s' "
        f"FROM runtimes WHERE uid = '{runtime.uid}' ON CONFLICT (installation, key) DO UPDATE "
        "SET holder = excluded.holder, token = excluded.token, fence = excluded.fence, expires_at = excluded.expires_at"
    )


def test_while_another_node_is_at_work_a_person_is_told_and_what_is_due_is_put_off(
    stage: Stage, kubectl: Kubectl, perdure: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    runtime = stage.runtime(kubectl, "busy").apply(stoppedTTL="Never").wait_ready()
    runtime.patch(desiredState="Stopped")
    runtime.wait_phase("Stopped")
    another_node_is_at_work(stage, runtime, 60)
    refused = perdure("cleanup", f"{runtime.kind.short}/{runtime.name}", "-n", runtime.kubectl.namespace or "")
    assert refused.returncode == 1
    assert "(conflict): node node-b is at work on it" in refused.stderr
    asked = ("admin_cli", "Stopped", "failure", "conflict")
    eventually(lambda: cleanups(stage, runtime), "the refusal is told", lambda seen: seen == [asked])
    runtime.patch(stoppedTTL="0s")
    skipped = ("auto_ttl", "Stopped", "superseded", "skipped_busy")
    eventually(lambda: cleanups(stage, runtime), "it is put off", lambda seen: seen == [asked, skipped])
    assert runtime.container_id in stage.site.ctr.names("containers", "ls")
    stage.ledger.execute("UPDATE leases SET expires_at = now() WHERE token = 'theirs'")
    is_cleaned_up(stage, runtime, "Expired", asked, skipped, ("auto_ttl", "Removed", "success", ""))


def test_never_is_never_and_a_change_counts_at_once(stage: Stage, kubectl: Kubectl) -> None:
    runtime = stage.runtime(kubectl, "ivy")
    runtime.apply(stoppedTTL="Never").wait_ready()
    runtime.run("echo kept > /data/kept")
    runtime.patch(desiredState="Stopped")
    assert "expiresAt" not in runtime.wait_phase("Stopped")
    nothing_is_written(runtime, 4)
    runtime.patch(stoppedTTL="720h")
    eventually(runtime.status, "it says when it goes", lambda seen: "expiresAt" in seen)
    runtime.patch(stoppedTTL="0s")
    is_cleaned_up(stage, runtime, "Expired", ("auto_ttl", "Removed", "success", ""))
    runtime.patch(desiredState="Running")
    runtime.wait_ready()
    assert runtime.run("cat /data/kept") == "kept\n"


def test_a_process_that_ended_by_itself_is_cleaned_up_and_not_run_again(stage: Stage, kubectl: Kubectl) -> None:
    runtime = stage.runtime(kubectl, "ilse")
    script = "echo again >> /data/runs; exit 0"
    runtime.apply(command=["/bin/sh", "-c", script], restartPolicy="Never", stoppedTTL="2s")
    is_cleaned_up(stage, runtime, "Expired", ("auto_ttl", "Removed", "success", ""))
    nothing_is_written(runtime, 3)
    runtime.patch(command=["/bin/sh", "-c", "exec sleep 1000"])
    runtime.wait_ready()
    assert runtime.run("cat /data/runs") == "again\n"


def test_a_clean_up_is_asked_for_on_the_command_line(
    stage: Stage, kubectl: Kubectl, kind: Kind, perdure: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    runtime = stage.runtime(kubectl, "iris", kind)
    runtime.apply().wait_ready()
    runtime.fill()
    files = runtime.tree()
    target = (f"{kind.short}/iris", "-n", kubectl.namespace or "")
    process = runtime.process()
    refused = perdure("cleanup", *target)
    assert refused.returncode == 1
    assert "conflict" in refused.stderr
    assert "stop it first" in refused.stderr
    assert runtime.process() == process
    runtime.patch(desiredState="Stopped")
    runtime.wait_phase("Stopped")
    done = perdure("cleanup", *target, "-o", "json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["outcome"] == "success"
    assert "code" not in answer
    told: list[Row] = [("admin_cli", "Running", "failure", "conflict"), ("admin_cli", "Removed", "success", "")]
    is_cleaned_up(stage, runtime, "CleanupRequested", *told)
    again = perdure("cleanup", *target, "-o", "json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["code"] == "replay_no_op"
    is_cleaned_up(stage, runtime, "CleanupRequested", *told, ("admin_cli", "Removed", "success", "replay_no_op"))
    runtime.patch(desiredState="Running")
    runtime.wait_ready()
    assert difference(files, runtime.tree()) == []


def test_removed_keeps_the_data_in_an_archive_alone(stage: Stage, kubectl: Kubectl) -> None:
    runtime = stage.runtime(kubectl, "inga")
    runtime.apply().wait_ready()
    runtime.fill()
    files = runtime.tree()
    runtime.patch(desiredState="Removed")
    is_cleaned_up(stage, runtime, "RemoveRequested", ("kubectl", "Removed", "success", ""))
    runtime.patch(desiredState="Running")
    runtime.wait_ready()
    assert difference(files, runtime.tree()) == []


def test_what_nobody_understands_is_answered(stage: Stage, kubectl: Kubectl) -> None:
    runtime = stage.runtime(kubectl, "ines")
    runtime.apply().wait_ready()
    runtime.annotate(request="shrink/1")
    status = eventually(runtime.status, "an answer", lambda seen: "lastRequest" in seen)
    assert status["lastRequest"]["code"] == "invalid_request"
    assert "cleanup/ID" in status["lastRequest"]["message"]
    runtime.wait_ready()
