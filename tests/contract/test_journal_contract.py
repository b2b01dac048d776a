"""What every `Journal` does: the file on disk and the fake of the crash matrix."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from tests.fakes.journal import FakeJournal, JournalDisk
from tests.unit.journal.samples import record, ref, rows

from perdure.api.names import InstallationId, Uid
from perdure.journal.file import FileJournal
from perdure.reconcile.ports.journal import Journal, NodeMemory

Reopen = Callable[[], Awaitable[Journal]]
"""End the process that has the journal and open it again in the next one."""


@pytest.fixture(params=["file", "fake"])
async def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Reopen]:
    disk = JournalDisk()
    opened: list[FileJournal] = []

    async def file() -> Journal:
        for journal in opened:
            await journal.close()
        opened.append(FileJournal.open(tmp_path))
        return opened[-1]

    async def fake() -> Journal:
        return FakeJournal(disk)

    yield file if request.param == "file" else fake
    for journal in opened:
        await journal.close()


async def test_a_new_journal_is_empty(reopen: Reopen) -> None:
    journal = await reopen()
    assert journal.records() == {}
    assert journal.record(Uid("uid-1")) is None
    assert journal.memory() == NodeMemory()
    assert list(journal.unsent()) == []


async def test_a_committed_record_is_the_same_after_a_restart(reopen: Reopen) -> None:
    journal = await reopen()
    await journal.commit(put=record(1, 4))
    assert journal.record(ref(1).uid) == record(1, 4)
    journal = await reopen()
    assert journal.records() == {ref(1).uid: record(1, 4)}


async def test_the_last_commit_of_a_uid_counts(reopen: Reopen) -> None:
    journal = await reopen()
    for operations in range(5):
        await journal.commit(put=record(1, operations))
    assert (await reopen()).record(ref(1).uid) == record(1, 4)


async def test_a_forgotten_record_stays_forgotten_and_others_stay(reopen: Reopen) -> None:
    journal = await reopen()
    await journal.commit(put=record(1))
    await journal.commit(put=record(2), forget=ref(1).uid)
    await journal.commit(forget=Uid("never there"))
    assert list((await reopen()).records()) == [ref(2).uid]


async def test_rows_wait_in_order_until_they_are_sent(reopen: Reopen) -> None:
    journal = await reopen()
    await journal.commit(rows=rows(1))
    await journal.commit(put=record(2), rows=rows(2))
    await journal.sent(3)
    assert list(journal.unsent()) == [rows(2)[1]]
    assert list((await reopen()).unsent()) == [rows(2)[1]]


async def test_rows_committed_while_others_are_sent_stay(reopen: Reopen) -> None:
    journal = await reopen()
    await journal.commit(rows=rows(1))
    await asyncio.gather(journal.sent(2), journal.commit(rows=rows(2)))
    assert list(journal.unsent()) == list(rows(2))


async def test_more_cannot_be_sent_than_waits(reopen: Reopen) -> None:
    journal = await reopen()
    await journal.commit(rows=rows(1))
    with pytest.raises(ValueError, match="2 are waiting"):
        await journal.sent(3)
    assert len(journal.unsent()) == 2


async def test_a_refused_row_is_kept_beside_the_others_until_it_is_taken_back(reopen: Reopen) -> None:
    journal = await reopen()
    await journal.commit(rows=rows(1))
    await journal.commit(rows=rows(2))
    await journal.sent(1)
    await journal.set_aside()
    assert (list(journal.refused()), list(journal.unsent())) == ([rows(1)[1]], list(rows(2)))
    journal = await reopen()
    assert (list(journal.refused()), list(journal.unsent())) == ([rows(1)[1]], list(rows(2)))
    await journal.sent(1)
    await journal.take_back()
    assert (list(journal.refused()), list(journal.unsent())) == ([], [rows(1)[1], rows(2)[1]])
    journal = await reopen()
    assert (list(journal.refused()), list(journal.unsent())) == ([], [rows(1)[1], rows(2)[1]])
    await journal.sent(2)
    with pytest.raises(ValueError, match="none is waiting"):
        await journal.set_aside()


async def test_memory_is_kept_until_it_is_replaced(reopen: Reopen) -> None:
    journal = await reopen()
    memory = NodeMemory(InstallationId("cluster"), "ledger", 5, frozenset({Uid("uid-1"), Uid("uid-2")}))
    await journal.commit(memory=memory)
    await journal.commit(put=record(1))
    assert (await reopen()).memory() == memory


async def test_what_was_read_does_not_change_under_the_reader(reopen: Reopen) -> None:
    journal = await reopen()
    await journal.commit(put=record(1), rows=rows(1))
    records, unsent = journal.records(), journal.unsent()
    await journal.commit(put=record(2), forget=ref(1).uid)
    await journal.sent(2)
    assert list(records) == [ref(1).uid]
    assert list(unsent) == list(rows(1))


async def test_many_commits_at_once_all_count(reopen: Reopen) -> None:
    journal = await reopen()
    await asyncio.gather(*(journal.commit(put=record(n), rows=rows(n)) for n in range(200)))
    journal = await reopen()
    assert len(journal.records()) == 200
    assert [row.id for row in journal.unsent()] == [row.id for n in range(200) for row in rows(n)]
