"""When the controller reads the catalogue for archives to publish: as soon as a status names a new one, and once for each."""

from __future__ import annotations

import msgspec
import pytest
from tests.fakes.cluster import ClusterState, FakeCluster
from tests.fakes.ledger import ArchiveEntry, ArchiveState, FakeControllerLedger, LedgerTables
from tests.integration.ledger.samples import archive, ref

from perdure.api.names import FINALIZER, Kind, OperationId, RuntimeRef, Uid
from perdure.api.runtime import RuntimeSpec
from perdure.kube.cache import RuntimeCache
from perdure.plan.view import archive_name
from perdure.reconcile.binder import ARCHIVES_AT_ONCE, Binder, Office
from perdure.reconcile.queue import KeyedQueue


@pytest.fixture
def state() -> ClusterState:
    state = ClusterState()
    state.create_namespace("ns")
    return state


@pytest.fixture
def tables() -> LedgerTables:
    return LedgerTables()


@pytest.fixture
def binder(state: ClusterState, tables: LedgerTables) -> Binder:
    cache = RuntimeCache()
    state.watchers.append(cache)
    cluster = FakeCluster(state, None, lambda _name, _when: None)
    ledger = FakeControllerLedger(tables, lambda _name, _when: None)
    queue: KeyedQueue[Uid] = KeyedQueue()
    return Binder(Office(cluster, ledger, cache, queue, lambda: ()))


async def test_a_new_archive_in_a_status_is_seen_once(state: ClusterState, binder: Binder) -> None:
    runtime = state.create(Kind.BOT, "ns", "ada", RuntimeSpec(image="i"))
    await binder.handle(runtime.uid)
    assert not binder.archive_seen.is_set()
    for name in ("br-ada-1", "br-ada-2"):
        known = state.runtimes[Kind.BOT, "ns", "ada"]
        state.change(known, status=msgspec.structs.replace(known.status, last_archive=name))
        await binder.handle(runtime.uid)
        assert binder.archive_seen.is_set()
        binder.archive_seen.clear()
        await binder.handle(runtime.uid)
        assert not binder.archive_seen.is_set(), "what was seen is not looked for again"


STUCK = 2 * ARCHIVES_AT_ONCE + 1


def catalogue(tables: LedgerTables, of: RuntimeRef, count: int, state: ArchiveState = "verified") -> None:
    for _ in range(count):
        number = len(tables.archives) + 1
        tables.archives[number] = ArchiveEntry(archive(of, number), of, OperationId(str(number)), state)


def block(state: ClusterState, tables: LedgerTables) -> None:
    """Somebody has objects of the names that the archives so far are to get."""
    other = archive(ref("somebody"), 10**6)
    for entry in tables.archives.values():
        state.archives[entry.facts.namespace, archive_name(entry.facts)] = other


async def test_archives_that_cannot_be_published_keep_no_others_from_it(
    state: ClusterState, tables: LedgerTables, binder: Binder
) -> None:
    state.create_namespace("team-a")
    catalogue(tables, ref(), STUCK)
    block(state, tables)
    catalogue(tables, ref("uid-2", namespace="ns"), 1)
    catalogue(tables, ref("uid-3", namespace="ns"), STUCK, "purged")
    await binder.publish_archives()
    published = [entry.facts.uid for entry in tables.archives.values() if entry.published]
    assert published == ["uid-2"]
    assert all(entry.unpublished for entry in tables.archives.values() if entry.state == "purged")


async def test_a_runtime_is_let_go_with_its_archives_listed_whatever_those_of_others_wait_for(
    state: ClusterState, tables: LedgerTables, binder: Binder
) -> None:
    state.create_namespace("team-a")
    catalogue(tables, ref(), STUCK)
    block(state, tables)
    runtime = state.create(Kind.BOT, "ns", "ada", RuntimeSpec(image="i"))
    catalogue(tables, runtime.ref(state.namespaces["ns"].uid), STUCK)
    state.change(runtime, finalizers=(FINALIZER,))
    state.delete(Kind.BOT, "ns", "ada")
    await binder.handle(runtime.uid)
    assert (Kind.BOT, "ns", "ada") not in state.runtimes
    assert sum(entry.published for entry in tables.archives.values()) == STUCK
