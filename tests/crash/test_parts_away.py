"""Parts that are away, emptied or exchanged under a running node: nothing is stopped, removed or started empty."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest
from tests.crash.clock import JumpingLoop
from tests.crash.networked_stories import damage
from tests.crash.plant import Agency, Call, Survivors
from tests.crash.promises import Promises
from tests.crash.stories import SPEC

from perdure.api.conditions import Reason
from perdure.api.names import InstallationId, Kind
from perdure.api.runtime import DeletionPolicy, RuntimeStatus
from perdure.plan.world import Freeze, TaskState
from perdure.reconcile.ports.errors import SandboxFailed
from perdure.reconcile.ports.journal import NodeMemory

BOTS = 5
LONG_SECONDS = 300.0
SOON_SECONDS = 20.0


class Node:
    """Five runtimes that run, and what happened to them since."""

    def __init__(self, survivors: Survivors) -> None:
        self.survivors = survivors
        self.process = Agency(survivors)
        self.process.begin()

    async def pass_time(self, seconds: float = LONG_SECONDS) -> None:
        await asyncio.sleep(seconds)

    async def restart(self, change: Callable[[Survivors], None] = lambda _: None) -> None:
        await self.process.end()
        change(self.survivors)
        self.process = Agency(self.survivors)
        self.process.begin()

    def started(self) -> int:
        return len(self.survivors.machine.starts)

    def freeze(self) -> Freeze | None:
        return self.process.guards.freeze

    def reasons(self) -> set[str]:
        return {
            condition.reason
            for runtime in self.survivors.cluster.runtimes.values()
            for condition in runtime.status.conditions
            if condition.status != "True"
        }

    def assert_untouched(self) -> None:
        machine = self.survivors.machine
        assert [task.facts.state for task in machine.tasks.values()] == [TaskState.RUNNING] * BOTS
        assert len(machine.snapshots) == len(machine.containers) == BOTS
        assert machine.removed == []
        assert self.started() == BOTS
        assert not self.survivors.defects


def told(story: Callable[[Node], object], *, network: bool = False) -> None:
    """Run a story on a node where five runtimes have become Running, and hold the promises about data."""
    loop = JumpingLoop()

    async def run() -> None:
        survivors = Survivors(loop.time, network)
        promises = Promises(survivors)
        for n in range(BOTS):
            survivors.cluster.create(Kind.BOT, "agents", f"bot-{n}", SPEC)
        node = Node(survivors)
        await node.pass_time(SOON_SECONDS)
        node.assert_untouched()
        await story(node)  # type: ignore[misc]
        promises.raise_broken()
        await node.process.end()

    try:
        loop.run_until_complete(run())
    finally:
        loop.close()


def lose_objects(survivors: Survivors, count: int = BOTS) -> None:
    for runtime in list(survivors.cluster.runtimes.values())[:count]:
        survivors.cluster.remove(runtime)


def test_objects_that_are_not_there_any_more_stop_nothing() -> None:
    async def story(node: Node) -> None:
        lose_objects(node.survivors)
        await node.pass_time()
        node.assert_untouched()
        await node.process.resync()
        assert node.freeze() is not None
        await node.restart()
        await node.pass_time()
        node.assert_untouched()
        frozen = node.freeze()
        assert frozen is not None
        assert frozen.reason == "MassAbsence"

    told(story)


def test_one_object_that_vanished_stops_nothing_and_freezes_nothing() -> None:
    async def story(node: Node) -> None:
        lose_objects(node.survivors, 1)
        await node.process.resync()
        await node.pass_time()
        node.assert_untouched()
        assert node.freeze() is None
        (report,) = node.survivors.cluster.nodes.values()
        assert len(report.orphans) == 1
        assert report.orphans[0].running

    told(story)


def test_objects_that_come_back_end_the_freeze() -> None:
    async def story(node: Node) -> None:
        kept = dict(node.survivors.cluster.runtimes)
        lose_objects(node.survivors)
        await node.process.resync()
        assert node.freeze() is not None
        for runtime in kept.values():
            node.survivors.cluster.store(msgspec.structs.replace(runtime, resource_version="99999"))
        await node.process.resync()
        assert node.freeze() is None
        await node.pass_time()
        node.assert_untouched()

    told(story)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_deletion_that_mass_absence_held_up_goes_on_once_a_person_accepted_it(restarted: bool) -> None:
    async def story(node: Node) -> None:
        lose_objects(node.survivors, BOTS - 1)
        await node.process.resync()
        (left,) = node.survivors.cluster.runtimes
        node.survivors.cluster.delete(*left)
        await node.pass_time()
        node.assert_untouched()
        await node.process.guards.accept_absence()
        if restarted:
            await node.restart()
        await node.process.resync()
        await node.pass_time()
        machine = node.survivors.machine
        assert left not in node.survivors.cluster.runtimes
        assert len(machine.snapshots) == len(machine.containers) == BOTS - 1
        assert [task.facts.state for task in machine.tasks.values()] == [TaskState.RUNNING] * (BOTS - 1)
        assert len(node.survivors.store.archives) == 1
        (report,) = node.survivors.cluster.nodes.values()
        assert len(report.orphans) == BOTS - 1

    told(story)


@pytest.mark.parametrize("restarted", [False, True])
def test_an_api_server_that_does_not_answer_stops_nothing(restarted: bool) -> None:
    async def story(node: Node) -> None:
        node.survivors.cluster.away = "connection refused"
        if restarted:
            await node.restart()
        for uid in node.survivors.disk.records:
            node.process.queue.add(uid)
        await node.pass_time()
        node.assert_untouched()
        node.survivors.cluster.away = None
        await node.pass_time()
        node.assert_untouched()

    told(story)


def test_a_status_that_was_wiped_is_written_again() -> None:
    async def story(node: Node) -> None:
        for runtime in list(node.survivors.cluster.runtimes.values()):
            node.survivors.cluster.change(runtime, status=RuntimeStatus())
        await node.restart()
        await node.pass_time()
        node.assert_untouched()
        assert {r.status.phase for r in node.survivors.cluster.runtimes.values()} == {"Running"}

    told(story)


def test_an_engine_that_does_not_answer_is_waited_for() -> None:
    async def story(node: Node) -> None:
        node.survivors.machine.away = "connection refused"
        for runtime in list(node.survivors.cluster.runtimes.values()):
            node.survivors.cluster.delete(runtime.kind, runtime.namespace, runtime.name)
        await node.pass_time()
        node.assert_untouched()
        assert "EngineUnavailable" in node.reasons()

    told(story)


@pytest.mark.parametrize("policy", list(DeletionPolicy))
def test_a_ledger_that_does_not_answer_removes_nothing(policy: DeletionPolicy) -> None:
    async def story(node: Node) -> None:
        node.survivors.tables.away = "connection refused"
        for runtime in list(node.survivors.cluster.runtimes.values()):
            spec = msgspec.structs.replace(runtime.spec, deletion_policy=policy)
            node.survivors.cluster.edit(runtime.kind, runtime.namespace, runtime.name, spec)
            node.survivors.cluster.delete(runtime.kind, runtime.namespace, runtime.name)
        await node.pass_time()
        node.assert_untouched()
        assert "LedgerUnavailable" in node.reasons()

    told(story)


def exchange_ledger(survivors: Survivors) -> None:
    """An empty one in the place of the one that was there."""
    tables = survivors.tables
    tables.id = "another ledger"
    for table in (tables.bindings, tables.runtimes, tables.operations, tables.leases, tables.archives):
        table.clear()
    tables.ports.clear()
    tables.port_ranges.clear()


def exchange_cluster(survivors: Survivors) -> None:
    """Another cluster's kubeconfig: none of our objects are there."""
    survivors.cluster.installation = InstallationId("another cluster")
    survivors.cluster.runtimes.clear()


def set_ledger_back(survivors: Survivors) -> None:
    """The database was restored from a backup: it has seen fewer fences than this node has."""
    memory = survivors.disk.memory
    survivors.disk.memory = NodeMemory(memory.installation, memory.ledger, highest_fence=1_000)


@pytest.mark.parametrize("change", [exchange_ledger, set_ledger_back])
def test_under_another_ledger_nothing_is_removed(change: Callable[[Survivors], None]) -> None:
    async def story(node: Node) -> None:
        await node.restart(change)
        await node.pass_time(SOON_SECONDS)
        for runtime in list(node.survivors.cluster.runtimes.values()):
            node.survivors.cluster.delete(runtime.kind, runtime.namespace, runtime.name)
        await node.pass_time()
        node.assert_untouched()
        assert node.freeze() is not None
        assert "IdentityChanged" in node.reasons()

    told(story)


def test_under_another_cluster_nothing_is_touched() -> None:
    async def story(node: Node) -> None:
        await node.restart(exchange_cluster)
        await node.pass_time()
        node.assert_untouched()
        assert node.freeze() is not None

    told(story)


def test_data_that_the_engine_lost_is_not_made_anew() -> None:
    async def story(node: Node) -> None:
        machine = node.survivors.machine
        machine.tasks.clear()
        machine.containers.clear()
        machine.snapshots.clear()
        await node.restart()
        await node.pass_time()
        assert machine.snapshots == {}
        assert node.started() == BOTS
        assert {r.status.phase for r in node.survivors.cluster.runtimes.values()} == {"Blocked"}
        assert "DataMissing" in node.reasons()

    told(story)


def test_data_that_engine_and_journal_lost_is_not_made_anew() -> None:
    async def story(node: Node) -> None:
        machine = node.survivors.machine

        def lose(survivors: Survivors) -> None:
            machine.tasks.clear()
            machine.containers.clear()
            machine.snapshots.clear()
            survivors.disk.records.clear()
            for runtime in list(survivors.cluster.runtimes.values()):
                survivors.cluster.change(runtime, status=RuntimeStatus())

        await node.restart(lose)
        await node.pass_time()
        assert machine.snapshots == {}
        assert node.started() == BOTS
        assert {r.status.phase for r in node.survivors.cluster.runtimes.values()} == {"Blocked"}

    told(story)


def test_a_network_that_cannot_be_mended_is_tried_ever_less_often_and_stops_nothing() -> None:
    async def story(node: Node) -> None:
        survivors, calls = node.survivors, node.survivors.calls
        broken = True

        def fail(call: Call) -> None:
            if broken and call == Call("sandbox.attach", "before"):
                raise SandboxFailed("no address is left", reason=Reason.ADDRESS_POOL_EXHAUSTED)

        survivors.interfere = fail
        survivors.process = node.process
        damage(survivors)
        before = len(calls)
        await node.pass_time()
        node.assert_untouched()
        tries = sum(call == Call("sandbox.attach", "before") for call in calls[before:])
        # After 0.5, 1, 2 … seconds, then every minute, each of them up to a fifth sooner.
        assert 10 * BOTS <= tries <= 14 * BOTS
        assert sum(call == Call("cluster.write_status", "before") for call in calls[before:]) <= tries
        assert "AddressPoolExhausted" in node.reasons()
        broken = False
        await node.pass_time(61)
        node.assert_untouched()
        assert node.reasons() == {"AsExpected"}

    told(story, network=True)


def test_a_first_start_waits_for_the_ledger() -> None:
    async def story(node: Node) -> None:
        survivors = node.survivors

        def cut(call: Call) -> None:
            if call.name == "cluster.bind":
                survivors.tables.away = "connection refused"

        survivors.interfere = cut
        name = (Kind.BOT, "agents", "new")
        survivors.cluster.create(*name, SPEC)
        await node.pass_time()
        node.assert_untouched()
        assert survivors.cluster.runtimes[name].status.phase == "Pending"
        assert "LedgerUnavailable" in node.reasons()
        survivors.interfere, survivors.tables.away = None, None
        await node.pass_time(SOON_SECONDS)
        assert survivors.cluster.runtimes[name].status.phase == "Running"

    told(story)


def test_a_journal_that_takes_nothing_starts_nothing_new_and_says_so() -> None:
    async def story(node: Node) -> None:
        survivors = node.survivors
        node.process.journal.broken = "50000 rows already wait for the ledger"
        name = (Kind.BOT, "agents", "new")
        survivors.cluster.create(*name, SPEC)
        await node.pass_time()
        node.assert_untouched()
        (ready,) = (it for it in survivors.cluster.runtimes[name].status.conditions if it.type == "Ready")
        assert (ready.status, ready.reason) == ("False", "JournalFailed")
        assert "already wait for the ledger" in ready.message
        node.process.journal.broken = None
        await node.pass_time(2 * SOON_SECONDS)
        assert survivors.cluster.runtimes[name].status.phase == "Running"

    told(story)


def test_a_machine_that_was_rebooted_starts_everything_again_on_its_data() -> None:
    async def story(node: Node) -> None:
        await node.restart(lambda survivors: survivors.machine.lose_tasks())
        await node.pass_time()
        machine = node.survivors.machine
        assert node.started() == 2 * BOTS
        assert all(start.files for start in machine.starts[BOTS:])
        assert [task.facts.state for task in machine.tasks.values()] == [TaskState.RUNNING] * BOTS

    told(story)


def test_an_installation_beside_ours_is_never_touched() -> None:
    async def story(node: Node) -> None:
        for snapshot in node.survivors.machine.snapshots.values():
            snapshot.installation = InstallationId("another cluster")
        for container in node.survivors.machine.containers.values():
            container.installation = InstallationId("another cluster")
        node.survivors.disk.records.clear()
        lose_objects(node.survivors)
        await node.restart()
        await node.pass_time()
        node.assert_untouched()
        (report,) = node.survivors.cluster.nodes.values()
        assert report.orphans == ()

    told(story)


def test_an_archive_that_a_purge_may_not_have_stays() -> None:
    async def story(node: Node) -> None:
        survivors = node.survivors
        runtime = next(iter(survivors.cluster.runtimes.values()))
        name = (runtime.kind, runtime.namespace, runtime.name)
        survivors.cluster.delete(*name)
        await node.pass_time()
        (entry,) = survivors.tables.archives.values()
        entry.facts = replace(entry.facts, retain=True)
        survivors.cluster.create(*name, msgspec.structs.replace(SPEC, deletion_policy=DeletionPolicy.PURGE))
        await node.pass_time(SOON_SECONDS)
        survivors.cluster.delete(*name)
        await node.pass_time()
        assert name not in survivors.cluster.runtimes
        assert list(survivors.store.archives) == [entry.facts.sequence]
        assert entry.state == "verified"

    told(story)
