"""The main job from a user's chair, on real parts, for both kinds: apply, crash, stop, preserve, come back, purge."""

import json

import pytest
from tests.e2e.harness.machine import Stage
from tests.e2e.harness.runtimes import Runtime
from tests.e2e.harness.waiting import eventually

from perdure.api.names import Kind
from rig.clients import Kubectl
from rig.filetree import difference


@pytest.fixture
def runtime(stage: Stage, kubectl: Kubectl, kind: Kind) -> Runtime:
    return stage.runtime(kubectl, "ada", kind, env=[{"name": "GREETING", "value": "hello"}])


def test_files_outlive_crash_stop_and_delete_until_a_purge(stage: Stage, runtime: Runtime) -> None:
    runtime.apply().wait_ready()
    assert runtime.environment()["GREETING"] == "hello"
    runtime.fill()
    files = runtime.tree()
    first_life = runtime.uid

    killed = runtime.kill_main_process()
    runtime.wait_other_process(killed)
    runtime.wait_ready()
    status = eventually(runtime.status, "the restart is counted", lambda seen: seen.get("restarts") == 1)
    assert status["lastExit"]["code"] == 137
    assert status["lastExit"]["signal"] == 9
    assert difference(files, runtime.tree()) == []

    runtime.patch(desiredState="Stopped")
    runtime.wait_phase("Stopped")
    assert runtime.pid() is None
    runtime.patch(desiredState="Running")
    runtime.wait_ready()
    assert difference(files, runtime.tree()) == []

    runtime.delete_and_wait()
    (archive,) = runtime.archives()
    stored = [path for path in stage.site.archive_files(namespace=runtime.kubectl.namespace) if first_life in str(path)]
    sequence = archive["status"]["sequence"]
    assert [path.name for path in stored] == [f"{sequence}.json", f"{sequence}.tar.zst"]
    manifest = json.loads(stored[0].read_text())
    assert manifest["sha256"] == archive["status"]["sha256"]
    assert archive["status"]["phase"] == "Verified"
    runtime.wait_nothing_left()

    runtime.apply().wait_ready()
    assert runtime.uid != first_life
    assert difference(files, runtime.tree()) == []
    assert runtime.status()["restoredFrom"] == archive["metadata"]["name"]
    runtime.run("echo 'a second life' >> /data/notes")

    runtime.patch(deletionPolicy="Purge")
    runtime.delete_and_wait()
    eventually(runtime.archives, "no RuntimeArchive is left", lambda left: left == [])
    assert stage.site.archive_files(namespace=runtime.kubectl.namespace) == []
    runtime.wait_nothing_left()
    assert stage.site.things_of(first_life) == []
    runtime.apply().wait_ready()
    assert "random" not in runtime.run("ls /data")
