"""A store of archives that is full or cannot be written: nothing is stopped for it, nothing is removed, and it ends well."""

from collections.abc import Callable, Iterator

import pytest
from tests.e2e.harness.machine import Machine, Stage
from tests.e2e.harness.processes import Operator
from tests.e2e.harness.runtimes import Runtime

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
