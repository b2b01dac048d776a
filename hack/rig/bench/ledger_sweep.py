"""What it takes to find those that are due among many stopped runtimes, and to begin their clean-ups in the ledger.

Called by ``rig.bench.ledger``. What decides, waits, takes leases and writes is the product's own; there is no engine: a
clean-up is over once its intent is committed.
"""

import asyncio
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from psycopg import sql

from perdure.api import names
from perdure.api.names import ChainId, InstallationId, Kind, NamespaceUid, NodeId, NodeName, RuntimeRef, Uid
from perdure.api.phases import Phase
from perdure.api.runtime import Runtime, parse_runtime
from perdure.journal.file import FileJournal, JournalSettings
from perdure.ledger.agent import PostgresAgentLedger
from perdure.ledger.database import Database
from perdure.plan.certainty import Absent, Present
from perdure.plan.operations import operation_id
from perdure.plan.planner import plan
from perdure.plan.steps import Begin
from perdure.plan.world import ImageFacts, Observed, Op, Record, SnapshotFacts, Source, Wanted, Workspace, World
from perdure.reconcile.guards import Guards
from perdure.reconcile.leases import LeaseKeeper
from perdure.reconcile.ports.journal import OperationStarted
from perdure.reconcile.queue import KeyedQueue
from perdure.reconcile.uptime import uptime
from perdure.reconcile.workers import work_with
from rig.bench.results import Goal, Row
from rig.bench.stage import eventually
from rig.progress import say

WORKERS = 8
"""Keys that are handled at once."""
SOON_SECONDS = 3.0
"""Long enough for everything to be looked at once before the first one is due."""
TTL, LONG_AFTER = "1h", 3000.0
SWEEP_GOAL_SECONDS = 1.0
_CLUSTER, _NODE, _NAME = InstallationId("sweep"), NodeId("sweep"), NodeName("sweep")
_IMAGE = ImageFacts("image:1", "sha256:aa", ChainId("sha256:bb"))
_TOUCHED = sql.SQL("SELECT (SELECT count(*) FROM leases WHERE installation = %(installation)s) AS leases,"
                   " (SELECT count(*) FROM operations WHERE installation = %(installation)s) AS operations")  # fmt: skip


class _Node:
    """Stopped runtimes as an agent knows them, and the queue that wakes it."""

    def __init__(self, ledger: PostgresAgentLedger, guards: Guards) -> None:
        self.queue: KeyedQueue[Uid] = KeyedQueue()
        self.looks = 0
        self.begun: list[float] = []
        """When each clean-up was begun (time.perf_counter)."""
        self._worlds: dict[Uid, World] = {}
        self._ledger = ledger
        self._leases = LeaseKeeper(ledger, guards)

    def stop(self, number: int, ago: float) -> None:
        """One more that stopped ``ago`` seconds before now."""
        of = RuntimeRef(Kind.BOT, "bench", f"bot-{number}", Uid(f"uid-{number}"), NamespaceUid("ns"))
        key, now = of.snapshot_key(1), uptime()
        workspace = Workspace(key, 1, _IMAGE.name, _IMAGE.digest, _IMAGE.chain_id, prepared=True, ever_started=True)
        record = Record(of, newest_n=1, workspace=workspace, phase=Phase.STOPPED, stopped_at=time.time() - ago,
                        stopped_up=replace(now, seconds=now.seconds - ago))  # fmt: skip
        there = SnapshotFacts(key, 1, _IMAGE.chain_id, _IMAGE.name, _IMAGE.digest, None)
        observed = Observed(container=Absent(), task=Absent(), snapshots=Present((there,)), sandbox=Absent(),
                            image=Present(_IMAGE))  # fmt: skip
        self._worlds[of.uid] = World(of, Wanted(_runtime(of)), observed, record)
        self.queue.add(of.uid)

    async def handle(self, uid: Uid) -> None:
        """As the reconciler: look, plan, begin what is to be begun, or be woken when it is time."""
        self.looks += 1
        world = replace(self._worlds[uid], uptime=uptime())
        made = plan(world, time.time())
        if not any(isinstance(step, Begin) for step in made.steps):
            if made.wake_at is not None:
                self.queue.add_in(uid, max(0.0, made.wake_at - time.time()))
            return
        id_ = operation_id(uid, 0.0, 1)
        row = OperationStarted(id_, world.ref, Op.CLEANUP, Source.AUTO_TTL, time.time(), Phase.STOPPED, _IMAGE.name)
        await self._ledger.begin(row, _NAME, await self._leases.hold(uid))
        self.begun.append(time.perf_counter())


def _runtime(of: RuntimeRef) -> Runtime:
    labels = {names.LABEL_NODE_ID: _NODE, names.LABEL_NAMESPACE_UID: of.namespace_uid}
    metadata = {"namespace": of.namespace, "name": of.name, "uid": of.uid, "labels": labels,
                "finalizers": [names.FINALIZER]}  # fmt: skip
    spec = {"image": _IMAGE.name, "desiredState": "Stopped", "stoppedTTL": TTL}
    return parse_runtime({"kind": of.kind, "metadata": metadata, "spec": spec})


async def sweep(url: str, stopped: int, due: int) -> list[Row]:
    """From the instant at which ``due`` of ``stopped`` are due until all of their clean-ups are begun."""
    say(f"    {due} of {stopped} stopped runtimes become due")
    async with AsyncExitStack() as closing:
        database = await closing.enter_async_context(Database(url))
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="perdure-sweep-", dir="/var/tmp")))
        journal = FileJournal.open(folder, JournalSettings(reserve_bytes=0))
        closing.push_async_callback(journal.close)
        ledger, guards = PostgresAgentLedger(database, _CLUSTER, _NODE), Guards(journal)
        await guards.check_ledger(await ledger.identity())
        node = _Node(ledger, guards)
        working = asyncio.create_task(work_with(WORKERS, node.queue, node.handle, _crashed))
        began, cpu = time.perf_counter(), time.process_time()
        for number in range(due, stopped):
            node.stop(number, LONG_AFTER)
        await eventually(lambda: node.looks >= stopped - due, "each one was looked at")
        first = time.process_time() - cpu, time.perf_counter() - began
        due_at = time.perf_counter() + SOON_SECONDS
        for number in range(due):
            node.stop(number, 3600.0 - (due_at - time.perf_counter()))
        await eventually(lambda: node.looks >= stopped, "those that become due were looked at")
        await asyncio.sleep(due_at - time.perf_counter())
        cpu = time.process_time()
        await eventually(lambda: len(node.begun) >= due, "all that are due are begun")
        seconds = max(node.begun) - due_at
        again, cpu = node.looks - stopped, time.process_time() - cpu
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        node.queue.close()
        touched = await database.row("counting", _TOUCHED, {"installation": _CLUSTER})
    assert touched is not None
    notes = f"{due} of {stopped} due at once, {WORKERS} at once, a lease and a committed intent each; no engine"
    return [
        Row("sweep: all that are due begun after", "s", seconds, due, goal=Goal(SWEEP_GOAL_SECONDS), notes=notes),
        Row("sweep: runtimes looked at", "", again, 1, goal=Goal(due), notes=notes),
        Row("sweep: leases taken", "", touched["leases"], 1, goal=Goal(due), notes=notes),
        Row("sweep: intents committed", "", touched["operations"], 1, goal=Goal(due), notes=notes),
        Row("sweep: CPU of the agent", "ms", cpu * 1000, 1, notes=notes),
        Row("first look at each, CPU of the agent", "ms", first[0] * 1000 / (stopped - due), stopped - due,
            notes=f"parsing, planning, and waiting for its time; {first[1]:.1f} s for all"),
    ]  # fmt: skip


def _crashed(name: str) -> None:
    raise RuntimeError(f"a worker crashed with {name}")
