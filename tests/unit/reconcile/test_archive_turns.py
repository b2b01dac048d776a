"""Steps that lose no data: what is verified before a snapshot goes is verified under the operation's lease."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from tests.fakes.guards import TrustingGuards
from tests.fakes.journal import FakeJournal
from tests.fakes.ledger import FakeAgentLedger, LedgerTables
from tests.property.worlds import NODE, NODE_NAME, REF

from perdure.api.names import ChainId, InstallationId, NodeId, OperationId, SnapshotKey
from perdure.plan.steps import Ground, RemoveWorkspace
from perdure.plan.world import ArchiveFacts, Op, OpenOperation, Record, Source, Workspace
from perdure.reconcile.data_steps import DataSteps
from perdure.reconcile.hands import Hands, Place
from perdure.reconcile.leases import LeaseKeeper, LeaseTimes
from perdure.reconcile.ports.engine import Layer
from perdure.reconcile.ports.errors import LeaseBusy

KEY = REF.snapshot_key(1)
ARCHIVE = ArchiveFacts(
    sequence=1,
    kind=REF.kind,
    namespace=REF.namespace,
    name=REF.name,
    uid=REF.uid,
    store="default",
    node_id=NODE,
    snapshot_key=KEY,
    image="image:1",
    image_digest="sha256:1",
    chain_id=ChainId("chain-1"),
    sha256="0" * 64,
    bytes=1,
    entries=1,
    uncompressed_bytes=1,
    empty=False,
)


class Queue:
    """A store in which a job never gets its turn."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def verify(self, archive: ArchiveFacts) -> None:
        self.asked.set()
        await asyncio.Event().wait()


class Layers:
    async def layer(self, key: SnapshotKey) -> Layer:
        return Layer(key, Path("/nowhere"), Path("/nowhere"))


@pytest.mark.looptime
async def test_the_lease_is_kept_however_long_the_archive_waits_to_be_verified() -> None:
    now = asyncio.get_running_loop().time
    tables, queue, journal = LedgerTables(now=now), Queue(), FakeJournal()
    ledger = FakeAgentLedger(NODE, tables)
    hands = Hands(
        engine=cast(Any, Layers()),
        sandbox=cast(Any, None),
        archives=cast(Any, queue),
        journal=journal,
        ledger=ledger,
        cluster=cast(Any, None),
        leases=LeaseKeeper(ledger, TrustingGuards(), now),
        outbox=cast(Any, None),
        probe=cast(Any, None),
    )
    workspace = Workspace(KEY, 1, "image:1", "sha256:1", ChainId("chain-1"), archived=ARCHIVE)
    operation = OpenOperation(OperationId("op-1"), Op.CLEANUP, Source.AUTO_TTL, 0.0)
    await journal.commit(put=Record(REF, workspace=workspace, operation=operation))
    steps = DataSteps(hands, Place(InstallationId("i"), NODE_NAME, NODE))
    removing = asyncio.create_task(steps.remove_workspace(RemoveWorkspace(KEY, Ground.ARCHIVED), REF))
    async with asyncio.timeout(10):
        await queue.asked.wait()
    await asyncio.sleep(10 * LeaseTimes().ttl_seconds)
    with pytest.raises(LeaseBusy):
        await FakeAgentLedger(NodeId("another"), tables).acquire(REF.uid, 60)
    removing.cancel()
    await asyncio.gather(removing, return_exceptions=True)
    assert removing.cancelled()
