"""What the executor's steps share: the ports that they work through, where they work, and the record that they keep."""

from __future__ import annotations

from dataclasses import dataclass

from perdure.api.conditions import Reason
from perdure.api.names import InstallationId, NodeId, NodeName, RuntimeRef
from perdure.api.runtime import Runtime
from perdure.plan.world import Record, Terminating, Wanted, Workspace, World
from perdure.reconcile.leases import LeaseKeeper
from perdure.reconcile.outbox import Outbox
from perdure.reconcile.ports.archives import Archives
from perdure.reconcile.ports.cluster import Cluster
from perdure.reconcile.ports.engine import Engine
from perdure.reconcile.ports.errors import PortError
from perdure.reconcile.ports.journal import Journal
from perdure.reconcile.ports.ledger import AgentLedger
from perdure.reconcile.ports.sandbox import Sandbox
from perdure.reconcile.probe import Probe


@dataclass(frozen=True, slots=True)
class Place:
    """Where this executor works."""

    installation: InstallationId
    node_name: NodeName
    node_id: NodeId


@dataclass(frozen=True, slots=True)
class Hands:
    """The ports that it works through."""

    engine: Engine
    sandbox: Sandbox
    archives: Archives
    journal: Journal
    ledger: AgentLedger
    cluster: Cluster
    leases: LeaseKeeper
    outbox: Outbox
    probe: Probe

    def record(self, ref: RuntimeRef, default: Record | None = None) -> Record:
        """The newest record of a life; a new one for a life that has none."""
        return self.journal.record(ref.uid) or default or Record(ref=ref)


def workspace_of(record: Record) -> Workspace:
    """Raises `PortError` for a record without one: a step was planned that should not have been."""
    if record.workspace is None:
        raise PortError(f"{record.ref} has no workspace on record", reason=Reason.INTERNAL_ERROR)
    return record.workspace


def live(world: World) -> Runtime:
    """The object to take a spec from. Raises `PortError` where there is none."""
    match world.desired:
        case Wanted(runtime) | Terminating(runtime):
            return runtime
        case _:
            raise PortError(f"{world.ref} has no object to take a spec from", reason=Reason.INTERNAL_ERROR)
