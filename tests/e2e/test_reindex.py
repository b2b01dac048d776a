"""A ledger that is put back to an older state, and archives that it has not heard of: on real parts, as the page says."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import psycopg
import pytest
from tests.e2e.harness.ledger import Ledger
from tests.e2e.harness.machine import Machine, Stage, standalone
from tests.e2e.harness.processes import Operator
from tests.integration.ledger.roles import documented_sql

from rig.clients import Kubectl
from rig.paths import CHECKOUT
from rig.postgres import programs

COMMAND_SECONDS = 120


@pytest.fixture
def stage(machine: Machine, new_operator: Callable[..., Operator]) -> Iterator[Stage]:
    with standalone(machine, new_operator) as stage:
        yield stage


def reindex(stage: Stage) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "perdure.cli.main", "archive", "reindex", stage.site.name, "-o", "json"],
        env={**os.environ, "KUBECONFIG": str(stage.machine.kubeconfig), "PYTHONPATH": str(CHECKOUT / "controller")},
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )


def answer_of(stage: Stage) -> str:
    done = reindex(stage)
    assert done.returncode == 0, done.stderr
    message: str = json.loads(done.stdout)[stage.site.name]["message"]
    return message


def restore_into(ledger: Ledger, dump: str, highest_fence: int, highest_sequence: int) -> None:
    """Steps 2 and 3 of the page."""
    command = [str(programs() / "pg_restore"), "--exit-on-error", f"--dbname={ledger.url}", dump]
    subprocess.run(command, check=True, timeout=COMMAND_SECONDS)
    statements = documented_sql("SELECT setval")
    for name, value in (("highest_fence", highest_fence), ("highest_sequence", highest_sequence)):
        statements = statements.replace(f":{name}", str(value))
    with psycopg.connect(ledger.url, autocommit=True) as owner:
        owner.execute(statements.encode())


def highest(ledger: Ledger, what: str) -> int:
    with psycopg.connect(ledger.url) as connection:
        (row,) = connection.execute(what.encode()).fetchall()
        return int(row[0] or 0)


def test_archive_made_after_the_backup_is_entered_again_and_its_data_comes_back(stage: Stage, kubectl: Kubectl) -> None:
    runtime = stage.runtime(kubectl, "hermes").apply().wait_ready()
    runtime.run("echo before > /data/file")
    other = stage.runtime(kubectl, "other").apply().wait_ready()
    other.run("echo purged > /data/file")
    dump = str(stage.site.directory / "perdure.dump")
    dumping = [str(programs() / "pg_dump"), "--format=custom", f"--file={dump}", stage.ledger.url]
    subprocess.run(dumping, check=True, timeout=COMMAND_SECONDS)
    runtime.run("echo after > /data/file")
    first = runtime.uid
    runtime.delete_and_wait()
    runtime.wait_nothing_left()
    fence = highest(stage.ledger, "SELECT max(fence) FROM leases")
    sequence = highest(stage.ledger, "SELECT max(sequence) FROM archives")
    stage.operator.stop()
    restored = stage.machine.new_ledger()
    restore_into(restored, dump, fence, sequence)
    stage.operator.variables["PERDURE_DATABASE_URL"] = restored.url
    stage.operator.start()
    assert restored.archives(first) == []
    assert answer_of(stage).startswith("1 archives entered, 0 were known, 0 left alone")
    (entered,) = restored.archives(first)
    assert (entered["state"], entered["sequence"]) == ("verified", sequence)
    (told,) = [row for row in restored.operations(first) if row["op"] == "adopt"]
    assert (told["source"], told["outcome"]) == ("admin_cli", "success")
    assert answer_of(stage).startswith("0 archives entered, 1 were known, 0 left alone")
    again = stage.runtime(kubectl, "hermes").apply().wait_ready()
    assert again.uid != first
    assert again.run("cat /data/file") == "after\n"
    assert other.run("cat /data/file") == "purged\n"


def test_archive_that_was_tampered_with_is_named_and_left(stage: Stage, kubectl: Kubectl) -> None:
    runtime = stage.runtime(kubectl, "victim").apply().wait_ready()
    runtime.fill(1)
    runtime.delete_and_wait()
    stage.ledger.execute("DELETE FROM archives")
    (archive,) = [path for path in stage.site.archive_files() if path.name.endswith(".tar.zst")]
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 0xFF
    archive.write_bytes(data)
    told = answer_of(stage)
    assert told.startswith("0 archives entered, 0 were known, 1 left alone")
    assert archive.name in told
    assert archive.read_bytes() == data
    assert stage.ledger.archives(runtime.uid) == []
