"""What the census tells of a node: what nobody claims, what is not ours, and what is on record and not there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import structlog
import yaml
from tests.fakes.cluster import ClusterState, FakeCluster
from tests.fakes.engine import FakeEngine, FakeMachine, FakeSnapshot
from tests.fakes.journal import FakeJournal
from tests.fakes.sandbox import FakeSandbox, SandboxState
from tests.unit.journal.samples import rows

from perdure.api.names import ChainId, InstallationId, Kind, NamespaceUid, NodeId, NodeName, RuntimeRef, Uid
from perdure.api.node import NodeAmounts
from perdure.api.runtime import Condition
from perdure.kube.cache import RuntimeCache
from perdure.plan.world import Record, SnapshotFacts, Workspace
from perdure.reconcile.census import Census, NodeDescription, Post
from perdure.reconcile.guards import Guards
from perdure.reconcile.queue import KeyedQueue

OURS, THEIRS = InstallationId("ours"), InstallationId("theirs")
NODE = NodeName("node")
REF = RuntimeRef(Kind.BOT, "agents", "hermes", Uid("uid-1"), NamespaceUid("ns-1"))


class Bench:
    """A census over fakes."""

    def __init__(self) -> None:
        self.machine, self.cluster, self.journal = FakeMachine(), ClusterState(), FakeJournal()
        self.counted: dict[str, int] = {}
        queue: KeyedQueue[Uid] = KeyedQueue()
        post = Post(
            engine=FakeEngine(self.machine, OURS),
            sandbox=FakeSandbox(SandboxState()),
            journal=self.journal,
            objects=RuntimeCache(queue.add),
            cluster=FakeCluster(self.cluster, None),
            guards=Guards(self.journal),
            queue=queue,
            count_orphans=lambda count: self.counted.update(orphans=count),
            count_strangers=lambda count: self.counted.update(strangers=count),
        )
        nothing = NodeAmounts()
        self._census = Census(post, NodeDescription(NODE, NodeId("node-1"), nothing, nothing))

    async def take(self) -> Mapping[str, Condition]:
        await self._census.take()
        return {condition.type: condition for condition in self.cluster.nodes[NODE].conditions}

    def put_snapshot(self, installation: InstallationId, n: int = 1) -> None:
        facts = SnapshotFacts(REF.snapshot_key(n), n, ChainId("sha256:aa"), "image:1", "sha256:bb", None)
        self.machine.snapshots[facts.key] = FakeSnapshot(installation, REF, facts)

    async def record(self, *, ever_started: bool) -> None:
        key = REF.snapshot_key(1)
        workspace = Workspace(key, 1, "image:1", "sha256:bb", ChainId("sha256:aa"), True, ever_started=ever_started)
        await self.journal.commit(put=Record(REF, workspace=workspace))


BY_EVERY_CENSUS = ("Ready", "NetworkReady", "NoOrphans", "Trusted", "HistoryComplete")


async def test_a_row_that_the_ledger_refuses_is_told_of_until_it_is_taken() -> None:
    bench = Bench()
    bench.journal.disk.aside.extend(rows(1))
    told = (await bench.take())["HistoryComplete"]
    assert (told.status, told.reason) == ("False", "InternalError")
    assert "refuses 2 rows" in told.message
    bench.journal.disk.aside.clear()
    assert (await bench.take())["HistoryComplete"].status == "True"


async def test_a_node_with_nothing_on_it_is_as_it_should_be() -> None:
    conditions = await Bench().take()
    assert {type_: condition.status for type_, condition in conditions.items()} == {
        **dict.fromkeys(
            ("Ready", "NetworkReady", "NoOrphans", "Trusted", "NoStrangers", "NoDataMissing", "HistoryComplete"), "True"
        )
    }


async def test_the_crd_describes_each_condition_of_a_node() -> None:
    crd = yaml.safe_load((Path(__file__).parents[3] / "crds" / "runtimenodes.yaml").read_text())
    (version,) = crd["spec"]["versions"]
    status = version["schema"]["openAPIV3Schema"]["properties"]["status"]
    described = re.findall(r"(\w+): ", status["properties"]["conditions"]["description"])
    assert described == list(await Bench().take())


async def test_what_carries_another_label_is_reported_once_and_left_alone() -> None:
    bench = Bench()
    bench.put_snapshot(THEIRS)
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            conditions = await bench.take()
    assert (conditions["NoStrangers"].status, conditions["NoStrangers"].reason) == ("False", "NotOurs")
    assert f"snapshot {REF.snapshot_key(1)}" in conditions["NoStrangers"].message
    assert bench.counted == {"orphans": 0, "strangers": 1}
    assert [line["count"] for line in logs if line["event"] == "strangers_on_the_engine"] == [1]
    assert len(bench.machine.snapshots) == 1
    bench.machine.snapshots.clear()
    assert (await bench.take())["NoStrangers"].status == "True"


async def test_data_that_is_on_record_and_nowhere_else_is_reported_and_its_record_stays() -> None:
    bench = Bench()
    await bench.record(ever_started=True)
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            conditions = await bench.take()
    assert (conditions["NoDataMissing"].status, conditions["NoDataMissing"].reason) == ("False", "DataMissing")
    assert str(REF) in conditions["NoDataMissing"].message
    assert len([line for line in logs if line["event"] == "data_of_records_is_missing"]) == 1
    assert bench.journal.record(REF.uid) is not None
    bench.put_snapshot(OURS)
    assert (await bench.take())["NoDataMissing"].status == "True"


async def test_a_workspace_that_nothing_ever_ran_on_held_no_data() -> None:
    bench = Bench()
    await bench.record(ever_started=False)
    assert (await bench.take())["NoDataMissing"].status == "True"


@pytest.mark.parametrize("seen_before", [False, True])
async def test_while_the_engine_is_away_nothing_new_is_said_of_what_is_on_it(seen_before: bool) -> None:
    bench = Bench()
    bench.put_snapshot(THEIRS)
    if seen_before:
        await bench.take()
    bench.machine.away = "connection refused"
    conditions = await bench.take()
    assert conditions["Ready"].status == "False"
    assert ("NoStrangers" in conditions) is seen_before
