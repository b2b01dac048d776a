"""Builds the half of Perdure that works on a node: engine, data, journal, and the loop over the runtimes bound here.

Used by `agent` (alone) and `standalone` (with the controller's half in the same process).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from perdure.api.names import NodeId, Uid
from perdure.api.node import NodeAmounts, RuntimeNode
from perdure.api.request import Verb
from perdure.api.runtime import Runtime
from perdure.archive.local import LocalStore
from perdure.cli import options
from perdure.cli.ledgers import AgentAccess
from perdure.cli.networks import open_networks
from perdure.cli.node_gauges import Gauged, NodeGauges
from perdure.cli.process import RETRY_SECONDS, Process, open_lease_client, patiently
from perdure.cli.settings import CommonSettings, NodeSettings
from perdure.engine.containerd.engine import ContainerdEngine
from perdure.engine.containerd.settings import ContainerdSettings
from perdure.journal.file import FileJournal
from perdure.journal.identity import node_id as read_node_id
from perdure.kube.access import ClusterSource
from perdure.kube.cache import RuntimeCache
from perdure.kube.client import ApiClient
from perdure.kube.cluster import KubeCluster
from perdure.kube.heartbeat import NodeHeartbeat
from perdure.kube.resync import Resync
from perdure.ledger.agent import PostgresAgentLedger
from perdure.network.probes import NamespaceProbes
from perdure.reconcile.absences import RESYNCS, Absences
from perdure.reconcile.acceptance import AbsenceAcceptance
from perdure.reconcile.asking import Asker
from perdure.reconcile.census import Census, NodeDescription, Post
from perdure.reconcile.executor import Executor
from perdure.reconcile.guards import Guards
from perdure.reconcile.hands import Hands, Place
from perdure.reconcile.janitor import Janitor
from perdure.reconcile.leases import LeaseKeeper
from perdure.reconcile.node_requests import NodeRequests
from perdure.reconcile.observer import Eyes, Observer
from perdure.reconcile.outbox import Outbox
from perdure.reconcile.ports.errors import PortError
from perdure.reconcile.prober import Prober
from perdure.reconcile.queue import KeyedQueue
from perdure.reconcile.reconciler import Loop, Reconciler
from perdure.reconcile.reindex import Reindexer
from perdure.reconcile.retries import Retries
from perdure.reconcile.workers import work_with

WORKERS = 64
"""Keys handled at once: most of their time is waiting, and starts are bounded separately."""
EVENTS_RETRY_SECONDS = 1.0
SUBSCRIBED_AFTER_SECONDS = 2.0
IDENTITY_SECONDS = 60.0

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class NodeSide:
    """The running half; `standalone` hands objects to `cache`, and is called by `on_released`."""

    node_id: NodeId
    cache: RuntimeCache
    queue: KeyedQueue[Uid]
    census: Census
    guards: Guards
    resync: Resync
    engine: ContainerdEngine
    journal: FileJournal
    requests: NodeRequests

    def put(self, runtime: Runtime) -> None:
        """From the watch. An object that is bound elsewhere is none of ours, even if it was once."""
        if runtime.node_id == self.node_id or self.cache.get(runtime.uid) is not None:
            self.cache.put(runtime)

    def deleted(self, runtime: Runtime) -> None:
        self.cache.deleted(runtime)

    def node_seen(self, node: RuntimeNode) -> None:
        """From the watch, which may show other nodes, too."""
        self.requests.node_seen(node)


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What the node's half is given by the process that it is part of."""

    client: ApiClient
    ledger: AgentAccess
    on_released: Callable[[Uid], None]


async def build(process: Process, common: CommonSettings, node: NodeSettings, neighbours: Neighbours) -> NodeSide:
    """Open everything and spawn the loops; parts that are away are waited for. The caller holds the node's lock."""
    node_id = read_node_id(node.state_dir)
    journal = FileJournal.open(node.state_dir)
    process.closing.push_async_callback(journal.close)
    cluster = KubeCluster(neighbours.client, process.metrics, host=node.name, node_id=node_id)
    installation = await patiently(process, "api", cluster.installation)
    guards = Guards(journal)
    await guards.check_installation(installation)
    ledger = await neighbours.ledger.open(process.closing, guards)
    engine = ContainerdEngine(
        ContainerdSettings(
            address=str(node.containerd_address),
            installation=installation,
            state_dir=node.state_dir,
            namespace=node.engine_namespace,
            runc_root=str(node.runc_root) if node.runc_root is not None else None,
            cgroup_parent=node.cgroup_parent,
        )
    )
    process.closing.push_async_callback(engine.close)
    archives = LocalStore(node.archive_dir, node_id)
    queue: KeyedQueue[Uid] = KeyedQueue()
    networks = await open_networks(installation, node, queue.add, lambda: frozenset(journal.records()))
    cache = RuntimeCache(queue.add)
    retries, outbox = Retries(), Outbox(journal, ledger, node.name)
    hands = Hands(
        engine,
        networks.sandbox,
        archives,
        journal,
        ledger,
        cluster,
        LeaseKeeper(ledger, guards),
        outbox,
        process.metrics,
    )
    place = Place(installation, node.name, node_id)
    executor = Executor(hands, place, now=time.time, concurrent_starts=node.max_concurrent_starts)
    absences = Absences(RESYNCS * common.resync_seconds, queue.add_in)
    prober = Prober(Asker(engine, NamespaceProbes()).ask, queue.add, process.metrics, time.time)
    eyes = Eyes(engine, networks.sandbox, ledger, journal, cluster, cache, prober.facts)
    observer = Observer(eyes, node_id, guards, retries, absences)
    loop = Loop(
        observer=observer,
        executor=executor,
        queue=queue,
        retries=retries,
        journal=journal,
        outbox=outbox,
        cluster=cluster,
        objects=cache,
        probe=process.metrics,
        prober=prober,
        now=time.time,
        on_released=neighbours.on_released,
    )
    post = Post(
        engine,
        networks.sandbox,
        journal,
        cache,
        cluster,
        guards,
        queue,
        process.metrics.orphans.set,
        process.metrics.strangers.set,
    )
    census = Census(post, describe(node, node_id))
    resync = Resync(cluster, cache, process.metrics, lambda _report: guards.check_absence(cache))
    acceptance = AbsenceAcceptance(guards, journal, resync.once, lambda: _take_census(census))
    handlers = {Verb.REINDEX: Reindexer(hands, place).answer, Verb.ACCEPT_ABSENCE: acceptance.answer}
    requests = NodeRequests(cluster, node.name, guards, handlers)
    side = NodeSide(node_id, cache, queue, census, guards, resync, engine, journal, requests)
    leases = await open_lease_client(process.closing, ClusterSource(common.kubeconfig))
    heartbeat = NodeHeartbeat(leases, node.name, node_id)
    process.closing.callback(queue.close)
    await patiently(process, "node", archives.open)
    await patiently(process, "node", heartbeat.claim)
    await patiently(process, "node", lambda: _first_look(side, ledger))
    reconciler = Reconciler(loop)
    process.spawn("heartbeat", heartbeat.run())
    process.spawn("outbox", outbox.run())
    process.spawn("engine-events", _follow_engine(process, side))
    process.spawn("node-report", _report_node(process, side, common.resync_seconds))
    process.spawn("resync", resync.run(interval=common.resync_seconds))
    process.spawn("ledger-identity", _watch_ledger_identity(process, side, ledger))
    process.spawn("janitor", Janitor(ledger, archives, node_id, guards).run(common.resync_seconds))
    process.spawn("requests", requests.run())
    process.spawn("gauges", NodeGauges(process.metrics, Gauged(cache, queue, journal, guards)).run())
    process.spawn("networks", networks.upkeep.run())
    process.spawn("prober", prober.run())
    process.spawn("workers", work_with(WORKERS, queue, reconciler.handle, process.crash_counter("reconciler")))
    return side


def describe(node: NodeSettings, node_id: NodeId) -> NodeDescription:
    """What the machine has, and what of it runtimes are offered: more or less than that, as its administrator says."""
    return NodeDescription(
        node.name,
        node_id,
        capacity=NodeAmounts(cpu=f"{options.machine_millicores()}m", memory=str(options.machine_bytes())),
        allocatable=NodeAmounts(cpu=f"{node.allocatable_millicores}m", memory=str(node.allocatable_bytes)),
    )


async def _first_look(side: NodeSide, ledger: PostgresAgentLedger) -> None:
    """The whole picture before the first plan: with a half-filled cache every runtime would look like an orphan."""
    try:
        await _check_ledger(side, ledger)
    except PortError as error:
        log.warning("ledger_away_at_start", error=str(error))
    await side.resync.once()


async def _follow_engine(process: Process, side: NodeSide) -> None:
    """Subscribe, then look at everything: what happened while nobody listened is not told again."""
    while True:
        try:
            events = side.engine.events()
            first = asyncio.ensure_future(anext(events, None))
            await _take_census(side.census)
            process.checks.report("engine", True)
            # containerd does not say when a subscription has begun; what ended in between is found a moment later.
            asyncio.get_running_loop().call_later(SUBSCRIBED_AFTER_SECONDS, _wake_all, side)
            event = await first
            while event is not None:
                side.queue.add(event.uid)
                event = await anext(events, None)
        except PortError as error:
            log.warning("engine_events_not_followed", error=str(error))
        process.checks.report("engine", False, "its event stream ended")
        await asyncio.sleep(EVENTS_RETRY_SECONDS)


def _wake_all(side: NodeSide) -> None:
    for uid in side.journal.records():
        side.queue.add(uid)


async def _take_census(census: Census) -> None:
    try:
        await census.take()
    except PortError as error:
        log.warning("node_not_reported", error=str(error))


async def _report_node(process: Process, side: NodeSide, interval: float) -> None:
    while True:
        try:
            await side.census.take()
        except PortError as error:
            process.checks.report("node", False, str(error))
            await asyncio.sleep(RETRY_SECONDS)
        else:
            process.checks.report("node", True)
            await asyncio.sleep(interval * random.uniform(0.8, 1.2))


async def _check_ledger(side: NodeSide, ledger: PostgresAgentLedger) -> None:
    seen = side.guards.highest_fence
    await side.guards.check_ledger(await ledger.identity(), seen)


async def _watch_ledger_identity(process: Process, side: NodeSide, ledger: PostgresAgentLedger) -> None:
    while True:
        try:
            await _check_ledger(side, ledger)
        except PortError as error:
            process.checks.report("ledger", False, str(error))
            await asyncio.sleep(RETRY_SECONDS)
        else:
            process.checks.report("ledger", True)
            await asyncio.sleep(IDENTITY_SECONDS * random.uniform(0.8, 1.2))
