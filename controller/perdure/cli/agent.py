"""Composition root of `perdure agent`: one node's half, alone."""

from __future__ import annotations

import uvloop

from perdure.api.names import Uid
from perdure.cli import node_side
from perdure.cli.ledgers import AgentAccess
from perdure.cli.process import Process, patiently, run_process
from perdure.cli.settings import AgentSettings
from perdure.journal.identity import node_id
from perdure.journal.lock import NodeLock
from perdure.kube.access import ClusterSource
from perdure.kube.client import ApiClient
from perdure.kube.cluster import KubeCluster, node_selector
from perdure.kube.intake import Intake, node_watch, runtime_watches

CHECKS = ("api", "engine", "node", "ledger")


def run(settings: AgentSettings) -> None:
    """Run until a signal. Raises `PortError`, `NoCluster`, `AddressInUse`, `NodeNameTaken`."""
    node = settings.node
    with NodeLock(node.state_dir, node.containerd_address, node.engine_namespace, lock_dir=node.run_dir):
        run_process(settings.common, CHECKS, lambda process: _main(process, settings))


async def _main(process: Process, settings: AgentSettings) -> None:
    source = ClusterSource(settings.common.kubeconfig)
    client = await process.closing.enter_async_context(ApiClient(source))
    identity = node_id(settings.node.state_dir)
    cluster = KubeCluster(client, process.metrics, host=settings.node.name, node_id=identity)
    installation = await patiently(process, "api", cluster.installation)
    access = AgentAccess(settings.database_url.reveal(), installation, identity)
    neighbours = node_side.Neighbours(client, access, _nobody_near)
    side = await node_side.build(process, settings.common, settings.node, neighbours)
    watches = (*runtime_watches(side, node_selector(identity)), node_watch(side.node_seen, settings.node.name))
    process.spawn("intake", Intake(client, source, "agent", watches, uvloop.new_event_loop).run())


def _nobody_near(_uid: Uid) -> None:
    """The controller is another process: it hears of a release through the status."""
