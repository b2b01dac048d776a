"""Builds the half of Perdure that works on the cluster: binding, letting go, archives' objects. Used by `controller` and
`standalone`."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NoReturn

import structlog

from perdure.api.names import Uid
from perdure.api.runtime import Runtime
from perdure.cli.process import Process
from perdure.cli.settings import CommonSettings
from perdure.kube.archives import ArchiveObject
from perdure.kube.cache import RuntimeCache
from perdure.kube.client import ApiClient
from perdure.kube.nodes import NodeCache
from perdure.kube.objects import KubeControllerCluster
from perdure.kube.resync import Resync, ResyncReport
from perdure.ledger.controller import PostgresControllerLedger
from perdure.plan.allotment import PortRange
from perdure.plan.binding import Candidate
from perdure.reconcile.binder import Binder, Office
from perdure.reconcile.ports.cluster import ControllerCluster, Objects
from perdure.reconcile.ports.errors import PortError
from perdure.reconcile.ports.ledger import ControllerLedger
from perdure.reconcile.queue import KeyedQueue
from perdure.reconcile.workers import work_with

WORKERS = 16
ARCHIVES_SECONDS = 30.0
"""How often the catalogue is read for archives without an object: those of orphans have no status that would tell."""
ABANDONED_SECONDS = 120.0
"""How often the ledger is asked for ports of lives that ended without the controller: they are few, and not in a hurry."""
RETAIN_RETRY_SECONDS = 5.0

log = structlog.get_logger(__name__)

_ArchiveKey = tuple[str, str]
"""Namespace and name of a RuntimeArchive."""
_Mark = tuple[str, bool]
"""The object's uid, and whether it is to be retained."""


@dataclass(slots=True)
class ControllerSide:
    """The running half."""

    cache: RuntimeCache
    queue: KeyedQueue[Uid]
    nodes: NodeCache
    resync: Resync
    retained: RetainMarks

    def put(self, runtime: Runtime) -> None:
        self.cache.put(runtime)

    def deleted(self, runtime: Runtime) -> None:
        self.cache.deleted(runtime)


@dataclass(frozen=True, slots=True)
class Seats:
    """What the controller's half is given by the process that it is part of."""

    client: ApiClient
    ledger: PostgresControllerLedger
    host: str
    shared: Callable[[RuntimeCache], Objects]
    """Where objects that the binder wrote go: the cache alone, or also the node's half in the same process."""
    port_range: PortRange


async def build(process: Process, common: CommonSettings, seats: Seats) -> ControllerSide:
    """Open everything and spawn the loops. The caller is the leader. Raises `PortError`."""
    queue: KeyedQueue[Uid] = KeyedQueue()
    cache = RuntimeCache(queue.add)

    def everything_again() -> None:
        for uid in cache.uids():
            runtime = cache.get(uid)
            if runtime is not None and runtime.node_id is None:
                queue.add(uid)

    nodes = NodeCache(seats.client, everything_again)
    cluster = KubeControllerCluster(seats.client, process.metrics, host=seats.host, node_name=nodes.name_of)

    def candidates() -> tuple[Candidate, ...]:
        return tuple(Candidate(view.node, view.alive) for view in nodes.views())

    binder = Binder(Office(cluster, seats.ledger, seats.shared(cache), queue, candidates, seats.port_range))
    resync = Resync(cluster, cache, process.metrics, _wake_all(cache, queue))
    side = ControllerSide(cache, queue, nodes, resync, RetainMarks(cluster, seats.ledger))
    process.closing.callback(queue.close)
    await nodes.refresh()
    await resync.once()
    process.checks.report("controller", True)
    process.spawn("nodes", nodes.run())
    process.spawn("controller-resync", resync.run(interval=common.resync_seconds))
    process.spawn("archives", _publish_archives(binder))
    process.spawn("abandoned-ports", _free_abandoned_ports(binder))
    process.spawn("retained-archives", side.retained.run())
    process.spawn("binders", work_with(WORKERS, queue, binder.handle, process.crash_counter("binder")))
    return side


def _wake_all(cache: RuntimeCache, queue: KeyedQueue[Uid]) -> Callable[[ResyncReport], Awaitable[None]]:
    async def wake(_report: ResyncReport) -> None:
        for uid in cache.uids():
            runtime = cache.get(uid)
            if runtime is not None and (runtime.terminating or runtime.node_id is None):
                queue.add(uid)

    return wake


async def _publish_archives(binder: Binder) -> None:
    while True:
        binder.archive_seen.clear()
        try:
            await binder.publish_archives()
        except PortError as error:
            log.warning("archives_not_published", error=str(error))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ARCHIVES_SECONDS * random.uniform(0.8, 1.2)):
                await binder.archive_seen.wait()


async def _free_abandoned_ports(binder: Binder) -> None:
    while True:
        try:
            await binder.free_abandoned_ports()
        except PortError as error:
            log.warning("abandoned_ports_not_freed", error=str(error))
        await asyncio.sleep(ABANDONED_SECONDS * random.uniform(0.8, 1.2))


class RetainMarks:
    """Carries `spec.retain` of RuntimeArchives, as people change it, into the catalogue, where a Purge looks.

    What this process has not carried yet may have been changed while there was no controller: it is written anyway. `put`
    and `deleted` are the watch's; whatever is tried again is tried with what the object says by then.
    """

    def __init__(self, cluster: ControllerCluster, ledger: ControllerLedger) -> None:
        self._cluster = cluster
        self._ledger = ledger
        self._latest: dict[_ArchiveKey, ArchiveObject] = {}
        self._carried: dict[_ArchiveKey, _Mark] = {}
        """What the catalogue is known to have; nothing of what is being written, or was and had no answer."""
        self._queue: KeyedQueue[_ArchiveKey] = KeyedQueue()

    def put(self, archive: ArchiveObject) -> None:
        key = archive.namespace, archive.name
        self._latest[key] = archive
        self._queue.add(key)

    def deleted(self, archive: ArchiveObject) -> None:
        """It lists nothing any more; what the catalogue has of it stays. One of that name may have been made since."""
        key = archive.namespace, archive.name
        if key in self._latest and self._latest[key].uid == archive.uid:
            del self._latest[key]
            self._carried.pop(key, None)

    async def run(self) -> NoReturn:
        """One after another, until cancelled."""
        try:
            while True:
                key = await self._queue.get()
                try:
                    await self._carry(key)
                except PortError as error:
                    log.warning("retain_not_recorded", namespace=key[0], archive=key[1], error=str(error))
                    self._queue.add_in(key, RETAIN_RETRY_SECONDS)
                finally:
                    self._queue.done(key)
        finally:
            self._queue.close()

    async def _carry(self, key: _ArchiveKey) -> None:
        archive = self._latest.get(key)
        if archive is None:
            return
        mark = archive.uid, archive.spec.retain
        if self._carried.pop(key, None) != mark:
            namespace = await self._cluster.get_namespace(archive.namespace)
            if namespace is not None:
                await self._ledger.record_retained(namespace.uid, archive.name, archive.spec.retain)
        if key in self._latest:
            self._carried[key] = mark
