"""Composition root of `perdure controller`: the cluster's half, one active at a time."""

from __future__ import annotations

import secrets
import socket

import uvloop

from perdure.api.names import InstallationId
from perdure.cli import controller_side
from perdure.cli.ledgers import keep_months_daily, migrate_patiently, open_database
from perdure.cli.process import Process, open_lease_client, patiently, run_process
from perdure.cli.settings import ControllerSettings
from perdure.kube.access import ClusterSource
from perdure.kube.cache import RuntimeCache
from perdure.kube.client import ApiClient
from perdure.kube.cluster import KubeCluster
from perdure.kube.intake import Intake, archive_watch, node_watch, runtime_watches
from perdure.kube.lease import LeaderLease
from perdure.kube.preflight import NotInstalled, ensure_namespace, require_crds
from perdure.ledger.controller import PostgresControllerLedger
from perdure.reconcile.ports.cluster import Objects
from perdure.reconcile.ports.errors import ApiUnavailable

CHECKS = ("api", "ledger", "leader", "controller")


def run(settings: ControllerSettings) -> None:
    """Run until a signal. Raises `PortError`, `NoCluster`, `AddressInUse`, and `LeadershipLost` if another one leads."""
    run_process(settings.common, CHECKS, lambda process: _main(process, settings))


async def prepare_cluster(process: Process, client: ApiClient) -> InstallationId:
    """Wait for the API server and our CRDs, make our namespace; which cluster it is."""

    async def look() -> InstallationId:
        try:
            await require_crds(client)
            await ensure_namespace(client)
        except NotInstalled as error:
            raise ApiUnavailable(str(error)) from error
        return await KubeCluster(client, process.metrics, host="", node_id=None).installation()

    return await patiently(process, "api", look)


async def _main(process: Process, settings: ControllerSettings) -> None:
    source = ClusterSource(settings.common.kubeconfig)
    client = await process.closing.enter_async_context(ApiClient(source))
    installation = await prepare_cluster(process, client)
    database = await open_database(process.closing, settings.database_url.reveal())
    await migrate_patiently(process, database)
    ledger = PostgresControllerLedger(database, installation)
    host = socket.gethostname()
    leases = await open_lease_client(process.closing, source)
    leader = LeaderLease(leases, f"{host}-{secrets.token_hex(4)}")
    process.checks.report("leader", False, "another controller leads")
    await leader.acquire()
    process.closing.push_async_callback(leader.release)
    process.checks.report("leader", True)
    process.spawn("leader", leader.hold())
    process.spawn("history-months", keep_months_daily(database, settings.history_days))
    seats = controller_side.Seats(client, ledger, host, _only, settings.port_range)
    side = await patiently(process, "controller", lambda: controller_side.build(process, settings.common, seats))
    watches = (*runtime_watches(side), node_watch(side.nodes.apply), archive_watch(side.retained))
    process.spawn("intake", Intake(client, source, "controller", watches, uvloop.new_event_loop).run())


def _only(cache: RuntimeCache) -> Objects:
    return cache
