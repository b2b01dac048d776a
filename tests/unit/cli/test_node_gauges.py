"""What a node shows of itself in metrics and in its RuntimeNode, whoever is away."""

from __future__ import annotations

import os

import pytest
from tests.fakes.journal import FakeJournal
from tests.integration.ledger.samples import finished, ref

from perdure.api.names import InstallationId, NodeId, Uid
from perdure.api.node import NodeAmounts
from perdure.api.runtime import parse_runtime
from perdure.cli import options
from perdure.cli.main import main
from perdure.cli.node_gauges import Gauged, NodeGauges
from perdure.cli.node_side import describe
from perdure.cli.settings import AgentSettings
from perdure.kube.cache import RuntimeCache
from perdure.plan.world import Record
from perdure.reconcile.guards import Guards
from perdure.reconcile.queue import KeyedQueue
from perdure.telemetry.metrics import new_metrics


class Shown:
    """A node without a ledger, an API server or an engine, and what its metrics say."""

    def __init__(self) -> None:
        self.journal, self.cache, self.queue = FakeJournal(), RuntimeCache(), KeyedQueue[Uid]()
        self.guards = Guards(self.journal)
        self.metrics = new_metrics()
        self.gauges = NodeGauges(self.metrics, Gauged(self.cache, self.queue, self.journal, self.guards))

    def now(self, name: str, **labels: str) -> float | None:
        self.gauges.show()
        return self.metrics.registry.get_sample_value(f"perdure_{name}", labels)


async def test_mass_absence_is_shown_while_it_lasts_although_no_ledger_ever_answers() -> None:
    node = Shown()
    assert node.now("frozen", reason="MassAbsence") == 0
    for n in range(4):
        uid = Uid(f"uid-{n}")
        node.journal.disk.records[uid] = Record(ref(uid))
    await node.guards.check_absence(node.cache)
    assert node.now("frozen", reason="MassAbsence") == 1
    assert node.now("frozen", reason="IdentityChanged") == 0
    await node.guards.accept_absence()
    assert node.now("frozen", reason="MassAbsence") == 0


async def test_another_identity_is_shown() -> None:
    node = Shown()
    await node.guards.check_installation(InstallationId("one"))
    await node.guards.check_installation(InstallationId("two"))
    assert node.now("frozen", reason="IdentityChanged") == 1
    assert node.now("frozen", reason="MassAbsence") == 0


async def test_what_waits_is_counted() -> None:
    node = Shown()
    node.queue.add(Uid("uid-1"))
    await node.journal.commit(rows=[finished(ref())])
    assert node.now("queue_depth") == 1
    assert node.now("journal_unsent_rows") == 1


def test_a_phase_that_nothing_is_in_any_more_goes_to_zero() -> None:
    node = Shown()

    def put(version: str, phase: str) -> None:
        metadata = {"namespace": "a", "name": "b", "uid": "uid-1", "resourceVersion": version}
        raw = {"kind": "BotRuntime", "metadata": metadata, "spec": {"image": "x"}, "status": {"phase": phase}}
        node.cache.put(parse_runtime(raw))

    put("1", "Creating")
    assert node.now("runtimes", kind="BotRuntime", phase="Creating") == 1
    put("2", "Running")
    assert node.now("runtimes", kind="BotRuntime", phase="Running") == 1
    assert node.now("runtimes", kind="BotRuntime", phase="Creating") == 0


@pytest.mark.parametrize("offered", [("500m", "1Gi"), ("1000", "64Ti"), ("0", "0")])
def test_capacity_is_what_the_machine_has_whatever_is_offered(
    monkeypatch: pytest.MonkeyPatch, offered: tuple[str, str]
) -> None:
    seen: list[AgentSettings] = []
    monkeypatch.setattr("perdure.cli.agent.run", seen.append)
    cpu, memory = offered
    url = "postgresql://agent@ledger/perdure"
    arguments = ["agent", "--database-url", url, "--allocatable-cpu", cpu, "--allocatable-memory", memory]
    assert main(arguments) == 0
    described = describe(seen[0].node, NodeId("id"))
    assert described.capacity.cpu == f"{(os.cpu_count() or 1) * 1000}m"
    assert described.capacity.memory == str(options.machine_bytes())
    amounts = {"500m": ("500m", 2**30), "1000": ("1000000m", 2**46), "0": ("0m", 0)}[cpu]
    assert described.allocatable == NodeAmounts(cpu=amounts[0], memory=str(amounts[1]))
