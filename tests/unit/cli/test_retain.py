"""`spec.retain` of RuntimeArchives on its way into the catalogue: whatever was not carried yet is written, and tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.fakes.cluster import ClusterState, FakeCluster
from tests.fakes.ledger import ArchiveEntry, FakeControllerLedger, LedgerTables
from tests.integration.ledger.samples import archive, ref

from perdure.api.archive import ArchiveSource, ArchiveSpec, ArchiveStatus, object_name
from perdure.api.names import Kind, OperationId
from perdure.cli import controller_side
from perdure.cli.controller_side import carry_retain
from perdure.kube.archives import ArchiveObject

NAME = object_name(Kind.BOT, "bot", 7)
SECONDS = 10


def listed(*, retain: bool) -> ArchiveObject:
    spec = ArchiveSpec(source=ArchiveSource(kind="BotRuntime", name="bot", uid="uid-1"), retain=retain)
    return ArchiveObject("team-a", NAME, "uid", spec, ArchiveStatus())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 (nothing tells us of it)
            await asyncio.sleep(0)


@pytest.fixture
def state() -> ClusterState:
    return ClusterState()


@pytest.fixture
def entry(state: ClusterState) -> ArchiveEntry:
    """The catalogue spares it from purges, as a person wanted before this process began."""
    of = ref(namespace_uid=state.create_namespace("team-a").uid)
    return ArchiveEntry(replace(archive(of, 7), retain=True, object_name=NAME), of, OperationId("1"), "verified")


async def test_what_was_taken_back_while_there_was_no_controller_is_carried(
    state: ClusterState, entry: ArchiveEntry
) -> None:
    await carried(state, entry)


async def test_an_api_server_that_is_away_ends_nothing(
    state: ClusterState, entry: ArchiveEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_side, "RETAIN_RETRY_SECONDS", 0.0)
    state.away = "403: forbidden"
    await carried(state, entry, during=lambda: setattr(state, "away", None))


async def carried(state: ClusterState, entry: ArchiveEntry, during: Callable[[], None] = lambda: None) -> None:
    tables, retained = LedgerTables(), asyncio.Queue[ArchiveObject]()
    tables.archives[7] = entry
    retained.put_nowait(listed(retain=False))
    async with asyncio.TaskGroup() as group:
        carrying = group.create_task(carry_retain(retained, FakeCluster(state), FakeControllerLedger(tables)))
        await until(retained.empty)
        during()
        await until(lambda: not entry.facts.retain)
        carrying.cancel()
