"""Composition root of `perdure standalone`: both halves in one process, for one machine."""

from __future__ import annotations

import math
import socket
from dataclasses import dataclass

import structlog
import uvloop

from perdure.api.names import Uid
from perdure.api.node import RuntimeNode
from perdure.api.runtime import Runtime
from perdure.cli import controller_side, node_side
from perdure.cli.controller import prepare_cluster
from perdure.cli.controller_side import ControllerSide
from perdure.cli.ledgers import AgentAccess, keep_months_daily, migrate_patiently, open_database
from perdure.cli.node_side import NodeSide
from perdure.cli.process import Process, open_lease_client, patiently, run_process
from perdure.cli.settings import StandaloneSettings
from perdure.journal.identity import node_id
from perdure.journal.lock import NodeLock
from perdure.kube.access import ClusterSource
from perdure.kube.cache import RuntimeCache
from perdure.kube.client import ApiClient
from perdure.kube.intake import Intake, archive_watch, node_watch, runtime_watches
from perdure.kube.lease import LeaderLease, LeaderTiming
from perdure.ledger.controller import PostgresControllerLedger
from perdure.ledger.embedded import EmbeddedPostgres
from perdure.reconcile.ports.cluster import Objects

CHECKS = ("api", "ledger", "leader", "controller", "engine", "node")
PATIENT = LeaderTiming(deadline=math.inf)
"""An API server that is away must not end the node's half. Should another controller lead for a moment until that is
noticed, bindings are still decided once: by a unique row in the ledger."""

log = structlog.get_logger(__name__)


def run(settings: StandaloneSettings) -> None:
    """Run until a signal. Raises `PortError`, `NoCluster`, `AddressInUse`, `LeadershipLost`, `NodeNameTaken`."""
    node = settings.node
    with NodeLock(node.state_dir, node.containerd_address, node.engine_namespace, lock_dir=node.run_dir):
        run_process(settings.common, CHECKS, lambda process: _main(process, settings))


async def _main(process: Process, settings: StandaloneSettings) -> None:
    source = ClusterSource(settings.common.kubeconfig)
    client = await process.closing.enter_async_context(ApiClient(source))
    installation = await prepare_cluster(process, client)
    identity = node_id(settings.node.state_dir)
    url = await _database_url(process, settings)
    database = await open_database(process.closing, url)
    await migrate_patiently(process, database)
    host = socket.gethostname()
    leases = await open_lease_client(process.closing, source)
    # The lock on the state folder makes this holder unique, so the Lease of a killed predecessor is ours at once.
    leader = LeaderLease(leases, f"{host}-{identity}", timing=PATIENT)
    await leader.acquire()
    process.closing.push_async_callback(leader.release)
    process.checks.report("leader", True)
    process.spawn("leader", leader.hold())
    process.spawn("history-months", keep_months_daily(database, settings.history_days))
    halves = _Halves()
    neighbours = node_side.Neighbours(client, AgentAccess(url, installation, identity), halves.released)
    halves.node = await node_side.build(process, settings.common, settings.node, neighbours)
    ledger = PostgresControllerLedger(database, installation)
    seats = controller_side.Seats(client, ledger, host, halves.shared, settings.port_range)
    halves.controller = await patiently(
        process, "controller", lambda: controller_side.build(process, settings.common, seats)
    )
    watches = (
        *runtime_watches(halves),
        node_watch(halves.node_seen),
        archive_watch(halves.controller.retained),
    )
    process.spawn("intake", Intake(client, source, "standalone", watches, uvloop.new_event_loop).run())


async def _database_url(process: Process, settings: StandaloneSettings) -> str:
    """The one that was given, or that of a server of our own, which ends with us."""
    if settings.database_url is not None:
        return settings.database_url.reveal()
    embedded = EmbeddedPostgres(settings.node.state_dir)
    url = await embedded.start()
    process.closing.push_async_callback(embedded.stop)
    return url


@dataclass(slots=True)
class _Halves:
    """Hands what one half learns to the other, so that neither waits for the watch to bring it back."""

    node: NodeSide | None = None
    controller: ControllerSide | None = None

    def put(self, runtime: Runtime) -> None:
        if self.controller is not None:
            self.controller.put(runtime)
        if self.node is not None:
            self.node.put(runtime)

    def deleted(self, runtime: Runtime) -> None:
        if self.controller is not None:
            self.controller.deleted(runtime)
        if self.node is not None:
            self.node.deleted(runtime)

    def node_seen(self, node: RuntimeNode) -> None:
        if self.controller is not None:
            self.controller.nodes.apply(node)
        if self.node is not None:
            self.node.node_seen(node)

    def released(self, uid: Uid) -> None:
        if self.controller is not None:
            self.controller.queue.add(uid)

    def shared(self, cache: RuntimeCache) -> Objects:
        return _Shared(cache, self)


@dataclass(frozen=True, slots=True)
class _Shared:
    """The controller's cache, whose writes the node's half sees at once: a binding starts a runtime without an echo."""

    cache: RuntimeCache
    halves: _Halves

    def get(self, uid: Uid) -> Runtime | None:
        return self.cache.get(uid)

    def put(self, runtime: Runtime) -> None:
        self.cache.put(runtime)
        if self.halves.node is not None:
            self.halves.node.put(runtime)

    def learn(self, runtime: Runtime) -> None:
        self.cache.learn(runtime)

    def uids(self) -> tuple[Uid, ...]:
        return tuple(self.cache.uids())
