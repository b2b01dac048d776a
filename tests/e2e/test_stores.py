"""A store of archives that is full or cannot be written: nothing is stopped for it, nothing is removed, and it ends well."""

from collections.abc import Callable, Iterator

import pytest
from tests.e2e.harness.machine import Machine, Stage
from tests.e2e.harness.processes import Operator
from tests.e2e.harness.runtimes import Runtime
from tests.e2e.harness.waiting import eventually

from rig.clients import Kubectl
from rig.filetree import difference
from rig.progress import run

SMALL, LARGE = "96m", "512m"
"""A store keeps 64 MiB in reserve: a layer of 48 MiB does not fit into the small one."""


@pytest.fixture(scope="module")
def stage(machine: Machine, new_operator: Callable[..., Operator]) -> Iterator[Stage]:
    """`perdure standalone` with its store on a file system of its own."""
    site, ledger = machine.new_site(), machine.new_ledger()
    site.archive_dir.mkdir()
    run(["mount", "-t", "tmpfs", "-o", f"size={LARGE}", "perdure-e2e-store", site.archive_dir], timeout=10)
    operator = new_operator("standalone", ledger, site)
    operator.start()
    yield Stage(machine, site, ledger, operator)
    operator.stop()
    machine.forget_nodes()
    site.clear()


@pytest.mark.parametrize(
    ("bad", "good", "reason"),
    [(f"size={SMALL}", f"size={LARGE}", "StoreFull"), ("ro", "rw", "StoreUnavailable")],
    ids=["full", "read-only"],
)
def test_runtime_whose_data_cannot_be_kept_runs_on_until_it_can(
    stage: Stage, kubectl: Kubectl, bad: str, good: str, reason: str
) -> None:
    runtime: Runtime = stage.runtime(kubectl, "kept").apply().wait_ready()
    runtime.fill(megabytes=48)
    files, process = runtime.tree(), runtime.process()
    store = stage.site.archive_dir
    run(["mount", "-o", f"remount,{bad}", store], timeout=10)
    runtime.delete()
    condition = runtime.wait_condition("Preserved", "False", reason)
    assert str(store) in condition["message"]
    assert runtime.process() == process, "what cannot be kept is not stopped"
    assert difference(files, runtime.tree()) == []
    run(["mount", "-o", f"remount,{good}", store], timeout=10)
    runtime.wait_gone()
    assert len(runtime.archives()) == 1
    runtime.wait_nothing_left()
    runtime.apply().wait_ready()
    assert difference(files, runtime.tree()) == []
    runtime.patch(deletionPolicy="Purge")
    runtime.delete_and_wait()


def test_going_back_to_an_earlier_archive_and_purging_a_name_go_as_the_page_says(
    stage: Stage, kubectl: Kubectl
) -> None:
    """docs/operations.md, Day to day and A store is full."""
    runtime = stage.runtime(kubectl, "wanted-once")
    for word in ("first", "second"):
        runtime.apply().wait_ready()
        runtime.run(f"echo {word} > /data/word")
        runtime.delete_and_wait()
    first, second = runtime.archives()
    name = first["metadata"]["name"]

    runtime.apply(restore={"policy": "Archive", "archive": name}).wait_ready()
    assert runtime.run("cat /data/word") == "first\n"
    runtime.patch(restore={"policy": "Latest", "archive": None})
    runtime.delete_and_wait()
    assert len(runtime.archives()) == 3

    kubectl("patch", "ra", name, "--type=merge", "-p", '{"spec":{"retain":true}}')
    owner = first["spec"]["source"]["uid"]
    eventually(lambda: stage.ledger.archives(owner), "the ledger has it", lambda rows: rows[0]["retain"])
    runtime.spec = {"desiredState": "Stopped", "restore": {"policy": "None"}, "deletionPolicy": "Purge"}
    runtime.apply().wait_phase("Stopped")
    runtime.delete_and_wait()
    assert [archive["metadata"]["name"] for archive in runtime.archives()] == [name]
    (left,) = {path.name.partition(".")[0] for path in stage.site.archive_files() if "/wanted-once/" in str(path)}
    assert left == str(first["status"]["sequence"])
    assert [row["state"] for row in stage.ledger.archives(second["spec"]["source"]["uid"])] == ["purged"]
