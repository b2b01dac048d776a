"""`spec.retain` of RuntimeArchives on its way into the catalogue: whatever was not carried yet is written, and tried again
with what the object says by then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from tests.crash.clock import jump_through
from tests.fakes.background import beside
from tests.fakes.cluster import ClusterState, FakeCluster
from tests.fakes.ledger import ArchiveEntry, FakeControllerLedger, LedgerTables
from tests.integration.ledger.samples import archive, ref

from perdure.api.archive import ArchiveSource, ArchiveSpec, ArchiveStatus, object_name
from perdure.api.names import Kind, OperationId
from perdure.cli.controller_side import RETAIN_RETRY_SECONDS, RetainMarks
from perdure.kube.archives import ArchiveObject
from perdure.reconcile.ports.errors import LedgerUnavailable


class Catalogue:
    """Two archives that are spared from purges, as a person wanted before this process began."""

    def __init__(self) -> None:
        self.state = ClusterState()
        of = ref(namespace_uid=self.state.create_namespace("team-a").uid)
        self.tables = LedgerTables()
        for sequence in (7, 8):
            facts = replace(archive(of, sequence), retain=True, object_name=name(sequence))
            self.tables.archives[sequence] = ArchiveEntry(facts, of, OperationId(str(sequence)), "verified")
        self.writes = 0
        self.answer_is_lost = False
        self.marks = RetainMarks(FakeCluster(self.state), FakeControllerLedger(self.tables, self._call))

    def _call(self, _name: str, when: str) -> None:
        self.writes += when == "before"
        if when == "after" and self.answer_is_lost:
            raise LedgerUnavailable("writing: no answer")

    def retained(self, sequence: int = 7) -> bool:
        return self.tables.archives[sequence].facts.retain

    def play(self, scene: Callable[[], Awaitable[None]]) -> None:
        """A scene on a clock that jumps, while marks are carried."""

        async def whole() -> None:
            async with beside(self.marks.run()):
                await scene()

        jump_through(whole())


def name(sequence: int) -> str:
    return object_name(Kind.BOT, "bot", sequence)


def listed(*, retain: bool, sequence: int = 7, uid: str = "uid") -> ArchiveObject:
    spec = ArchiveSpec(source=ArchiveSource(kind="BotRuntime", name="bot", uid="uid-1"), retain=retain)
    return ArchiveObject("team-a", name(sequence), uid, spec, ArchiveStatus())


async def carried() -> None:
    """Whatever can be is, but nothing that waits to be tried again."""
    await asyncio.sleep(RETAIN_RETRY_SECONDS / 10)


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue()


def test_what_was_taken_back_while_there_was_no_controller_is_carried(catalogue: Catalogue) -> None:
    async def scene() -> None:
        catalogue.marks.put(listed(retain=False))
        await carried()
        assert not catalogue.retained()
        assert catalogue.retained(8), "another archive"
        catalogue.marks.put(listed(retain=False))
        await carried()
        assert catalogue.writes == 1, "what is known to be there is not written again"

    catalogue.play(scene)


def test_an_api_server_that_is_away_ends_nothing(catalogue: Catalogue) -> None:
    async def scene() -> None:
        catalogue.state.away = "403: forbidden"
        catalogue.marks.put(listed(retain=False))
        await carried()
        assert catalogue.retained()
        catalogue.state.away = None
        await asyncio.sleep(RETAIN_RETRY_SECONDS)
        assert not catalogue.retained()

    catalogue.play(scene)


def test_what_is_tried_again_never_undoes_what_a_person_wants_since(catalogue: Catalogue) -> None:
    async def scene() -> None:
        catalogue.state.away = "no connection"
        catalogue.marks.put(listed(retain=False))
        catalogue.marks.put(listed(retain=False, sequence=8))
        await carried()
        catalogue.state.away = None
        catalogue.marks.put(listed(retain=True))
        await asyncio.sleep(3 * RETAIN_RETRY_SECONDS)
        assert catalogue.retained(), "the next Purge would delete it"
        assert not catalogue.retained(8), "that one was tried again"

    catalogue.play(scene)


def test_a_write_without_an_answer_may_have_come_to_pass(catalogue: Catalogue) -> None:
    async def scene() -> None:
        catalogue.marks.put(listed(retain=True))
        await carried()
        catalogue.answer_is_lost = True
        catalogue.marks.put(listed(retain=False))
        await carried()
        assert not catalogue.retained()
        catalogue.answer_is_lost = False
        catalogue.marks.put(listed(retain=True))
        await carried()
        assert catalogue.retained()

    catalogue.play(scene)


def test_of_an_object_that_is_gone_nothing_is_tried_again_or_remembered(catalogue: Catalogue) -> None:
    async def scene() -> None:
        catalogue.state.away = "no connection"
        catalogue.marks.put(listed(retain=False))
        await carried()
        catalogue.marks.deleted(listed(retain=False))
        catalogue.state.away = None
        await asyncio.sleep(3 * RETAIN_RETRY_SECONDS)
        assert catalogue.retained()
        catalogue.marks.put(listed(retain=True))
        await carried()
        assert catalogue.writes == 1
        catalogue.marks.deleted(listed(retain=True))
        catalogue.marks.put(listed(retain=True))
        await carried()
        assert catalogue.writes == 2, "another object of that name was never carried"

    catalogue.play(scene)


def test_the_end_of_an_older_object_of_that_name_is_no_end_of_this_one(catalogue: Catalogue) -> None:
    async def scene() -> None:
        catalogue.marks.put(listed(retain=False, uid="newer"))
        catalogue.marks.deleted(listed(retain=True, uid="older"))
        await carried()
        assert not catalogue.retained()

    catalogue.play(scene)
