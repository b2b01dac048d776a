"""Counts what is on a node and whose it is: wakes the runtimes that have something here, and lists what nobody claims.

Taken at start, after each resync and when the engine's event stream had a gap. It changes nothing itself: data of ours
that no object claims stays pinned, and it is told to people; so is what is not ours, and what is on record but not there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from perdure.api.conditions import Reason, Truth
from perdure.api.names import NodeId, NodeName, Uid
from perdure.api.node import NodeAmounts, NodeStatus, OrphanEntry
from perdure.api.runtime import Condition
from perdure.plan.certainty import Present, Unknown
from perdure.plan.world import TaskState
from perdure.reconcile.guards import Guards
from perdure.reconcile.ports.cluster import Cluster, Objects
from perdure.reconcile.ports.engine import Engine, EngineInfo, Owned
from perdure.reconcile.ports.errors import PortError
from perdure.reconcile.ports.journal import Journal
from perdure.reconcile.ports.sandbox import Sandbox
from perdure.reconcile.queue import KeyedQueue

MAX_LISTED_ORPHANS = 100
"""In the RuntimeNode's status; the metric counts them all."""

MAX_NAMED = 5
"""In a message; so that it stays the same, and is not written anew, when only the order changes, names are sorted."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Post:
    """What the census works with."""

    engine: Engine
    sandbox: Sandbox
    journal: Journal
    objects: Objects
    cluster: Cluster
    guards: Guards
    queue: KeyedQueue[Uid]
    count_orphans: Callable[[int], None]
    count_strangers: Callable[[int], None]


@dataclass(frozen=True, slots=True)
class NodeDescription:
    """What does not change while the agent runs."""

    name: NodeName
    node_id: NodeId
    capacity: NodeAmounts
    allocatable: NodeAmounts


@dataclass(frozen=True, slots=True)
class _Drift:
    """What is there and not ours, and what is on record and not there."""

    strangers: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


class Census:
    """One per agent."""

    def __init__(self, post: Post, node: NodeDescription) -> None:
        self._post = post
        self._node = node
        self._one_at_a_time = asyncio.Lock()
        self._told: _Drift | None = None

    async def take(self) -> None:
        """Wake everything that is on record or on the engine, then report the node. Raises `PortError` only from the
        API server; an engine that is away is reported as such."""
        async with self._one_at_a_time:
            await self._take()

    async def _take(self) -> None:
        post = self._post
        inventory = await post.engine.inventory()
        for uid in post.journal.records():
            post.queue.add(uid)
        owned: tuple[Owned, ...] = ()
        if isinstance(inventory, Present):
            owned = inventory.it
            for found in owned:
                post.queue.add(found.ref.uid)
        orphans = tuple(_entry(found) for found in owned if self._is_orphan(found))
        if isinstance(inventory, Present):
            post.count_orphans(len(orphans))
        why = inventory.why if isinstance(inventory, Unknown) else None
        strangers = await post.engine.strangers()
        drift = None
        if isinstance(inventory, Present) and isinstance(strangers, Present):
            drift = self._notice(_Drift(strangers.it, self._lost(owned)))
        await post.cluster.report_node(self._node.name, await self._status(why, orphans, drift or self._told))

    def _lost(self, owned: tuple[Owned, ...]) -> tuple[str, ...]:
        """Lives whose newest data is neither here nor archived, as far as nobody else tells of them: they have no object."""
        here = {snapshot.key for found in owned for snapshot in found.snapshots}
        lost = []
        for uid, record in self._post.journal.records().items():
            workspace = record.workspace
            given_up = record.released or record.force_released or self._post.objects.get(uid) is not None
            if given_up or workspace is None or not workspace.ever_started or workspace.key in here:
                continue
            if workspace.archived is None or workspace.archived.snapshot_key != workspace.key:
                lost.append(f"{record.ref} (uid {uid})")
        return tuple(sorted(lost))

    def _notice(self, drift: _Drift) -> _Drift:
        """Count it, and write it down once for each change."""
        self._post.count_strangers(len(drift.strangers))
        before, self._told = self._told or _Drift(), drift
        if drift.strangers != before.strangers:
            log.warning("strangers_on_the_engine", count=len(drift.strangers), some=drift.strangers[:MAX_NAMED])
        if drift.lost != before.lost:
            log.error("data_of_records_is_missing", count=len(drift.lost), some=drift.lost[:MAX_NAMED])
        return drift

    def _is_orphan(self, found: Owned) -> bool:
        """Data without an object. A life whose deletion is under way is not one yet, one released by force is."""
        if self._post.objects.get(found.ref.uid) is not None:
            return False
        record = self._post.journal.record(found.ref.uid)
        return record is None or record.force_released or not record.deletion_seen

    async def _status(
        self, engine_away: str | None, orphans: tuple[OrphanEntry, ...], drift: _Drift | None
    ) -> NodeStatus:
        info = EngineInfo("", "")
        if engine_away is None:
            try:
                info = await self._post.engine.info()
            except PortError as error:
                engine_away = str(error)
        bound = sum(1 for record in self._post.journal.records().values() if not record.released)
        return NodeStatus(
            node_id=self._node.node_id,
            engine=info.name,
            engine_version=info.version,
            capacity=self._node.capacity,
            allocatable=self._node.allocatable,
            conditions=self._conditions(engine_away, await self._post.sandbox.problem(), orphans)
            + _drift_conditions(drift),
            runtimes=bound,
            orphans=orphans[:MAX_LISTED_ORPHANS],
        )

    def _conditions(
        self, engine_away: str | None, network: PortError | None, orphans: tuple[OrphanEntry, ...]
    ) -> tuple[Condition, ...]:
        freeze = self._post.guards.freeze
        refused = len(self._post.journal.refused())
        names = ", ".join(f"{orphan.kind}/{orphan.namespace}/{orphan.name}" for orphan in orphans[:MAX_NAMED])
        return (
            _condition("Ready", engine_away is None, Reason.ENGINE_UNAVAILABLE, engine_away or ""),
            _condition(
                "NetworkReady",
                network is None,
                network.reason if network is not None else Reason.AS_EXPECTED,
                str(network or ""),
            ),
            _condition(
                "NoOrphans",
                not orphans,
                Reason.ORPHAN_PENDING,
                f"{len(orphans)} runtimes on this node have no object: {names}. Their data stays pinned; "
                "`perdure nodes -o wide` lists them",
            ),
            _condition(
                "Trusted",
                freeze is None,
                freeze.reason if freeze else Reason.AS_EXPECTED,
                freeze.message if freeze else "",
            ),
            _condition(
                "HistoryComplete",
                not refused,
                Reason.INTERNAL_ERROR,
                f"the ledger refuses {refused} rows of this node's history as they are: the agent's log says why. They "
                "stay in the node's journal, and are tried again hourly",
            ),
        )


def _drift_conditions(drift: _Drift | None) -> tuple[Condition, ...]:
    """None: it could not be looked at since the agent began, and nothing is said."""
    if drift is None:
        return ()
    strangers, lost = ", ".join(drift.strangers[:MAX_NAMED]), ", ".join(drift.lost[:MAX_NAMED])
    return (
        _condition(
            "NoStrangers",
            not drift.strangers,
            Reason.NOT_OURS,
            f"{len(drift.strangers)} things in Perdure's part of the engine carry no label of this installation: "
            f"{strangers}. They are left alone; whoever made them must remove them, or keep them in another namespace",
        ),
        _condition(
            "NoDataMissing",
            not drift.lost,
            Reason.DATA_MISSING,
            f"the data of {len(drift.lost)} runtimes that have no object any more is neither on this node nor archived: "
            f"{lost}. Their records stay",
        ),
    )


def _condition(type_: str, good: bool, reason: Reason, message: str) -> Condition:
    return Condition(
        type=type_,
        status=Truth.TRUE.value if good else Truth.FALSE.value,
        reason=Reason.AS_EXPECTED.value if good else reason.value,
        message="" if good else message[:1024],
    )


def _entry(found: Owned) -> OrphanEntry:
    newest = max(found.snapshots, key=lambda snapshot: snapshot.n, default=None)
    return OrphanEntry(
        uid=found.ref.uid,
        kind=found.ref.kind.value,
        namespace=found.ref.namespace,
        name=found.ref.name,
        snapshot_key=newest.key if newest is not None else "",
        running=found.task is not None and found.task.state is TaskState.RUNNING,
    )
