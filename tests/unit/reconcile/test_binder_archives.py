"""When the controller reads the catalogue for archives to publish: as soon as a status names a new one, and once for each."""

from __future__ import annotations

import msgspec
import pytest
from tests.fakes.cluster import ClusterState, FakeCluster
from tests.fakes.ledger import FakeControllerLedger, LedgerTables

from perdure.api.names import Kind, Uid
from perdure.api.runtime import RuntimeSpec
from perdure.kube.cache import RuntimeCache
from perdure.reconcile.binder import Binder, Office
from perdure.reconcile.queue import KeyedQueue


@pytest.fixture
def state() -> ClusterState:
    state = ClusterState()
    state.create_namespace("ns")
    return state


@pytest.fixture
def binder(state: ClusterState) -> Binder:
    cache = RuntimeCache()
    state.watchers.append(cache)
    cluster = FakeCluster(state, None, lambda _name, _when: None)
    ledger = FakeControllerLedger(LedgerTables(), lambda _name, _when: None)
    queue: KeyedQueue[Uid] = KeyedQueue()
    return Binder(Office(cluster, ledger, cache, queue, lambda: ()))


async def test_a_new_archive_in_a_status_is_seen_once(state: ClusterState, binder: Binder) -> None:
    runtime = state.create(Kind.BOT, "ns", "ada", RuntimeSpec(image="i"))
    await binder.handle(runtime.uid)
    assert not binder.archive_seen.is_set()
    for archive in ("br-ada-1", "br-ada-2"):
        known = state.runtimes[Kind.BOT, "ns", "ada"]
        state.change(known, status=msgspec.structs.replace(known.status, last_archive=archive))
        await binder.handle(runtime.uid)
        assert binder.archive_seen.is_set()
        binder.archive_seen.clear()
        await binder.handle(runtime.uid)
        assert not binder.archive_seen.is_set(), "what was seen is not looked for again"
