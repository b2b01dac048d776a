"""A whole Perdure over fakes: what survives a kill (`Survivors`), and one process with both halves (`Agency`).

Every call through a port passes `Survivors.on_call`, which counts it, lets a story interfere, and kills or fails the
call that a case asks for. A killed process can do nothing any more: all its later calls are killed, too.
"""

from __future__ import annotations

import asyncio
import random
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.fakes.archives import FakeArchives, FakeStore
from tests.fakes.cluster import ClusterState, FakeCluster
from tests.fakes.engine import FakeEngine, FakeMachine, sample_images
from tests.fakes.journal import FakeJournal, JournalDisk
from tests.fakes.ledger import FakeAgentLedger, FakeControllerLedger, LedgerTables
from tests.fakes.network_probes import FakeNetworkProbes
from tests.fakes.sandbox import FakeSandbox, SandboxState

from perdure.api.conditions import Reason
from perdure.api.names import InstallationId, Kind, NodeId, NodeName, Uid
from perdure.api.node import NodeAmounts, NodeSpec, NodeStatus, RuntimeNode
from perdure.api.runtime import Runtime
from perdure.kube.cache import RuntimeCache
from perdure.plan.binding import Candidate
from perdure.plan.uptime import Uptime
from perdure.reconcile.absences import Absences
from perdure.reconcile.asking import Asker
from perdure.reconcile.binder import Binder, Office
from perdure.reconcile.census import Census, NodeDescription, Post
from perdure.reconcile.executor import Executor
from perdure.reconcile.guards import Guards
from perdure.reconcile.hands import Hands, Place
from perdure.reconcile.leases import LeaseKeeper
from perdure.reconcile.observer import Eyes, Observer
from perdure.reconcile.outbox import Outbox
from perdure.reconcile.ports.errors import (
    ApiUnavailable,
    EngineUnavailable,
    LedgerUnavailable,
    PortError,
    SandboxFailed,
    StoreError,
)
from perdure.reconcile.prober import Prober
from perdure.reconcile.queue import KeyedQueue
from perdure.reconcile.reconciler import Loop, Reconciler
from perdure.reconcile.retries import Retries
from perdure.reconcile.workers import work_with

NODE_ID = NodeId("node-1")
NODE_NAME = NodeName("node")
IMAGES = {"example/image:1": "one", "example/image:1b": "one", "example/image:2": "two"}
AMOUNTS = NodeAmounts(cpu="8", memory="8Gi")
READS = frozenset(
    {
        *("ledger.identity", "ledger.facts", "ledger.read", "ledger.unpublished", "ledger.purged"),
        *("ledger.purging", "ledger.purgeable", "ledger.spared", "ledger.abandoned_ports"),
        *("archives.preflight", "archives.verify", "archives.compare", "archives.list"),
        *("engine.usage", "engine.layer", "engine.wait_task", "engine.execute"),
    }
)
"""Calls that change nothing: killed there is killed after the call before."""
PUBLISH_SECONDS = 30.0
GRACE_SECONDS = 60.0
"""For objects that are gone although nobody was seen deleting them."""
When = Literal["before", "after"]


class Killed(BaseException):
    """SIGKILL: no handler of ours may catch it."""


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    when: When


class _Quiet:
    """A probe that counts nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


@dataclass(slots=True)
class Survivors:
    """Everything that outlives a process, and the record of its calls."""

    clock: Callable[[], float]
    """The one that nobody sets; the database's, too."""
    has_network: bool = False
    """Whether the node has a network to attach runtimes to."""
    cluster: ClusterState = field(default_factory=ClusterState)
    tables: LedgerTables = field(default_factory=LedgerTables)
    disk: JournalDisk = field(default_factory=JournalDisk)
    machine: FakeMachine = field(default_factory=FakeMachine)
    sandboxes: SandboxState = field(default_factory=SandboxState)
    store: FakeStore = field(default_factory=FakeStore)
    calls: list[Call] = field(default_factory=list)
    kill_at: frozenset[int] = frozenset()
    """Indices into `calls` at which the process is killed."""
    fail_at: int | None = None
    """The index of the call that fails once, with its port's own error."""
    interfere: Callable[[Call], None] | None = None
    watch: Callable[[Call], None] | None = None
    process: Agency | None = None
    defects: list[str] = field(default_factory=list)
    wall_error: float = 0.0
    """Seconds that the machine's wall clock is fast."""

    def wall(self) -> float:
        return self.clock() + self.wall_error

    def __post_init__(self) -> None:
        self.machine.images = sample_images(IMAGES)
        self.machine.now = self.wall
        self.tables.now = self.clock
        self.cluster.create_namespace("agents")

    def hook_of(self, process: Agency) -> Callable[[str, When], None]:
        def on_call(name: str, when: When) -> None:
            if process.dead:
                raise Killed(name)
            n, call = len(self.calls), Call(name, when)
            self.calls.append(call)
            self.machine.tick()
            if self.watch is not None:
                self.watch(call)
            if self.interfere is not None:
                self.interfere(call)
            if n in self.kill_at:
                process.die()
                raise Killed(name)
            if n == self.fail_at and may_fail(call):
                raise error_of(name)

        return on_call


def may_fail(call: Call) -> bool:
    """A journal that says no has written nothing, and Events are best effort: neither fails after the fact."""
    return call.name != "cluster.emit" and not (call.name.startswith("journal.") and call.when == "after")


def error_of(name: str) -> PortError:
    """What the port of this call raises when what is behind it is away."""
    message = f"{name}: the other side hung up"
    match name.partition(".")[0]:
        case "engine":
            return EngineUnavailable(message)
        case "sandbox":
            return SandboxFailed(message)
        case "archives":
            return StoreError(message, reason=Reason.STORE_UNAVAILABLE)
        case "journal":
            return PortError(message, reason=Reason.JOURNAL_FAILED)
        case "ledger":
            return LedgerUnavailable(message)
        case _:
            return ApiUnavailable(message)


class _Watch:
    """The API server's watch of one process; on the node's side only of what is bound there."""

    def __init__(self, controller: RuntimeCache, agent: RuntimeCache) -> None:
        self._controller = controller
        self._agent = agent

    def put(self, runtime: Runtime) -> None:
        self._controller.put(runtime)
        if runtime.node_id == NODE_ID or self._agent.get(runtime.uid) is not None:
            self._agent.put(runtime)

    def deleted(self, runtime: Runtime) -> None:
        self._controller.deleted(runtime)
        self._agent.deleted(runtime)


class Agency:
    """One process: controller and agent in one, as `perdure standalone`."""

    def __init__(self, survivors: Survivors) -> None:
        self.dead = False
        self.survivors = survivors
        self.died = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        hook, now, steady = survivors.hook_of(self), survivors.wall, survivors.clock
        self.queue: KeyedQueue[Uid] = KeyedQueue()
        self.bindings: KeyedQueue[Uid] = KeyedQueue()
        self.cache = RuntimeCache(self.queue.add)
        self._known = RuntimeCache(self.bindings.add)
        self.journal = FakeJournal(survivors.disk, hook)
        self.guards = Guards(self.journal)
        self._cluster = FakeCluster(survivors.cluster, NODE_ID, hook)
        self._everything = FakeCluster(survivors.cluster, None, hook)
        self._ledger = FakeAgentLedger(NODE_ID, survivors.tables, hook, steady)
        installation = survivors.cluster.installation
        engine = FakeEngine(survivors.machine, installation, hook)
        self._engine = engine
        sandbox = FakeSandbox(survivors.sandboxes, hook, has_network=survivors.has_network)
        archives = FakeArchives(survivors.store, survivors.machine, hook)
        self.outbox = Outbox(self.journal, self._ledger, NODE_NAME)
        retries, probe = Retries(random.Random(1), now, steady), _Quiet()
        hands = Hands(
            engine=engine,
            sandbox=sandbox,
            archives=archives,
            journal=self.journal,
            ledger=self._ledger,
            cluster=self._cluster,
            leases=LeaseKeeper(self._ledger, self.guards, steady),
            outbox=self.outbox,
            probe=probe,
        )
        self._prober = Prober(
            Asker(engine, FakeNetworkProbes(survivors.machine)).ask, self.queue.add, probe, now, random.Random(1)
        )
        eyes = Eyes(engine, sandbox, self._ledger, self.journal, self._cluster, self.cache, self._prober.facts)
        self._reconciler = Reconciler(
            Loop(
                observer=Observer(
                    eyes,
                    NODE_ID,
                    self.guards,
                    retries,
                    Absences(GRACE_SECONDS, self.queue.add_in, steady),
                    lambda: Uptime("boot", steady()),
                ),
                executor=Executor(
                    hands,
                    Place(InstallationId(installation), NODE_NAME, NODE_ID),
                    now=now,
                    concurrent_starts=4,
                    uptime=lambda: Uptime("boot", now()),
                ),
                queue=self.queue,
                retries=retries,
                journal=self.journal,
                outbox=self.outbox,
                cluster=self._cluster,
                objects=self.cache,
                probe=probe,
                prober=self._prober,
                now=now,
                on_released=self.bindings.add,
            )
        )
        ledger = FakeControllerLedger(survivors.tables, hook)
        self._binder = Binder(Office(self._everything, ledger, self._known, self.bindings, _candidates))
        post = Post(
            engine,
            sandbox,
            self.journal,
            self.cache,
            self._cluster,
            self.guards,
            self.queue,
            lambda _: None,
            lambda _: None,
        )
        self._census = Census(post, NodeDescription(NODE_NAME, NODE_ID, AMOUNTS, AMOUNTS))

    def begin(self) -> None:
        self._spawn(self._run())

    def die(self) -> None:
        self.dead = True
        self.died.set()

    async def end(self) -> None:
        """Drop all memory."""
        self.dead = True
        self.survivors.cluster.watchers.clear()
        self.survivors.machine.hang_up()
        self.queue.close()
        self.bindings.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def busy(self) -> bool:
        """Whether anything is being done right now."""
        queues = (self.queue, self.bindings)
        return any(len(queue) or queue._in_flight for queue in queues) or bool(self.journal.unsent())

    def waits(self) -> bool:
        """Whether something is to be looked at again at a certain time."""
        return bool(self.queue._due or self.bindings._due)

    async def resync(self) -> None:
        """What a full list does: everything is looked at, and absence is counted."""
        cluster = self._cluster
        for kind in Kind:
            mark = self.cache.mark()
            self.cache.compare(kind, await cluster.list_uids(kind), mark)
        await self.guards.check_absence(self.cache)
        await self._census.take()

    # ------------------------------------------------------------------------------------------ inside

    async def _run(self) -> None:
        self.survivors.cluster.watchers.append(_Watch(self._known, self.cache))
        await self._patiently(self._open)
        self._spawn(self.outbox.run())
        self._spawn(self._follow_engine())
        self._spawn(self._publish())
        self._spawn(self._prober.run())
        self._spawn(work_with(4, self.queue, self._handled(self._reconciler.handle), lambda _: None))
        self._spawn(work_with(1, self.bindings, self._handled(self._binder.handle), lambda _: None))

    async def _open(self) -> None:
        await self.guards.check_installation(await self._cluster.installation())
        await self.guards.check_ledger(await self._ledger.identity())
        for runtime in list(self.survivors.cluster.runtimes.values()):
            self._known.put(runtime)
        await self.resync()

    async def _patiently(self, opening: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                return await opening()
            except PortError:
                await asyncio.sleep(1)

    async def _follow_engine(self) -> None:
        events = self.survivors.machine.subscribe()
        while True:
            self.queue.add((await events.get()).uid)

    async def _publish(self) -> None:
        while True:
            await self._patiently(self._binder.publish_archives)
            await self._patiently(self._binder.free_abandoned_ports)
            await asyncio.sleep(PUBLISH_SECONDS)

    def _handled(
        self, handle: Callable[[Uid], Coroutine[Any, Any, None]]
    ) -> Callable[[Uid], Coroutine[Any, Any, None]]:
        async def handled(uid: Uid) -> None:
            try:
                await handle(uid)
            except Exception:
                self.survivors.defects.append(traceback.format_exc())
                raise

        return handled

    def _spawn(self, work_: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work_))


def _candidates() -> tuple[Candidate, ...]:
    node = RuntimeNode(
        name=NODE_NAME,
        uid="node-uid",
        resource_version="1",
        labels={},
        annotations={},
        terminating=False,
        spec=NodeSpec(),
        status=NodeStatus(node_id=NODE_ID, allocatable=AMOUNTS),
    )
    return (Candidate(node, alive=True),)
