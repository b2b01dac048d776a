"""The journal's file: torn ends, damage, full disks, kills, compaction, limits."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.journal.samples import record, ref, rows

from perdure.api.conditions import Reason
from perdure.api.names import Uid
from perdure.journal import log as log_module
from perdure.journal.errors import JournalFailed
from perdure.journal.file import FILE_NAME, FileJournal, JournalSettings
from perdure.journal.frames import VERSION, Header, encode_entry, encode_frame, encode_header, replay
from perdure.journal.log import open_log
from perdure.journal.state import Entry
from perdure.reconcile.ports.journal import NodeMemory, OperationFinished

SMALL = JournalSettings(reserve_bytes=0, compact_bytes=4096)


def frames_of(entries: list[list[Entry]]) -> list[bytes]:
    """A journal as it is on disk: the header and one frame per batch."""
    frames = [encode_header()]
    for batch in entries:
        frames.append(encode_frame(len(frames), [encode_entry(entry) for entry in batch]))
    return frames


entry_strategy = st.one_of(
    st.builds(lambda n, k: Entry(put=record(n, k)), st.integers(1, 4), st.integers(0, 99)),
    st.builds(lambda n: Entry(forget=ref(n).uid), st.integers(1, 4)),
    st.builds(lambda fence: Entry(memory=NodeMemory(highest_fence=fence)), st.integers(0, 10**12)),
)
batches = st.lists(st.lists(entry_strategy, min_size=1, max_size=3), max_size=8)


@given(batches, st.data())
def test_a_cut_at_any_byte_leaves_a_prefix_of_whole_commits(entries: list[list[Entry]], data: st.DataObject) -> None:
    frames = frames_of(entries)
    whole = b"".join(frames)
    cut = data.draw(st.integers(len(frames[0]), len(whole)))
    complete = max(n for n in range(1, len(frames) + 1) if len(b"".join(frames[:n])) <= cut)
    replayed = replay(whole[:cut], Path("journal"))
    expected = replay(b"".join(frames[:complete]), Path("journal"))
    assert replayed.frames == complete
    assert replayed.size == len(b"".join(frames[:complete]))
    assert replayed.torn == cut - replayed.size
    assert replayed.state.records == expected.state.records
    assert replayed.state.memory == expected.state.memory


@given(batches, st.binary(min_size=1, max_size=200))
def test_garbage_after_the_last_frame_is_a_torn_write(entries: list[list[Entry]], garbage: bytes) -> None:
    frames = frames_of(entries)
    replayed = replay(b"".join(frames) + garbage, Path("journal"))
    assert replayed.frames == len(frames)
    assert replayed.torn == len(garbage)


@given(st.lists(st.lists(entry_strategy, min_size=1, max_size=3), min_size=2, max_size=8), st.data())
def test_a_flipped_bit_before_the_last_frame_is_an_error(entries: list[list[Entry]], data: st.DataObject) -> None:
    frames = frames_of(entries)
    at = data.draw(st.integers(0, sum(map(len, frames[:-1])) - 1))
    bit = data.draw(st.integers(0, 7))
    damaged = bytearray(b"".join(frames))
    damaged[at] ^= 1 << bit
    with pytest.raises(JournalFailed, match="damaged"):
        replay(bytes(damaged), Path("journal"))


def test_a_missing_frame_is_an_error() -> None:
    frames = frames_of([[Entry(put=record(n))] for n in range(4)])
    with pytest.raises(JournalFailed, match=r"frame 2 .* is damaged.*Nothing was changed"):
        replay(b"".join(frames[:2] + frames[3:]), Path("journal"))


@pytest.mark.parametrize("content", [b"", b"\n", b"something else\n", encode_header()[:-1]])
def test_a_journal_without_a_header_is_never_taken_for_a_new_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(JournalFailed, match="header is missing or damaged"):
        FileJournal.open(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == content


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.journal.frames.VERSION", VERSION + 1)
    newer = encode_header()
    monkeypatch.undo()
    (tmp_path / FILE_NAME).write_bytes(newer)
    with pytest.raises(JournalFailed, match="format 2, and this program reads format 1 at most"):
        FileJournal.open(tmp_path)
    assert msgspec.json.decode(newer.split(b" ", 3)[3], type=Header).version == VERSION + 1


def test_an_older_record_without_newer_fields_is_read() -> None:
    old = b'{"put":{"ref":{"kind":"BotRuntime","namespace":"a","name":"b","uid":"u","namespace_uid":"n"},"gone":1}}'
    replayed = replay(encode_header() + encode_frame(1, [old]), Path("journal"))
    kept = replayed.state.records[Uid("u")]
    assert kept.newest_n == 0
    assert kept.workspace is None


def test_an_intact_frame_that_makes_no_sense_is_an_error() -> None:
    for payload in (b'{"put":{"ref":5}}', b'{"sent":3}', b'{"rows":[{}]}'):
        with pytest.raises(JournalFailed, match="frame 1 is intact but cannot be understood"):
            replay(encode_header() + encode_frame(1, [payload]), Path("journal"))


async def test_work_goes_on_behind_a_torn_end(tmp_path: Path) -> None:
    journal = FileJournal.open(tmp_path, SMALL)
    await journal.commit(put=record(1))
    await journal.close()
    with (tmp_path / FILE_NAME).open("ab") as file:
        file.write(b"0badc0de 2 [{")
    journal = FileJournal.open(tmp_path, SMALL)
    await journal.commit(put=record(2))
    await journal.close()
    journal = FileJournal.open(tmp_path, SMALL)
    assert len(journal.records()) == 2
    await journal.close()


async def test_a_mostly_dead_journal_is_compacted_and_says_the_same(tmp_path: Path) -> None:
    journal = FileJournal.open(tmp_path, SMALL)
    await journal.commit(rows=rows(1), memory=NodeMemory(highest_fence=3))
    for n in range(100):
        await journal.commit(put=record(n % 2, n))
    await journal.close()
    assert (tmp_path / FILE_NAME).stat().st_size < 40_000
    journal = FileJournal.open(tmp_path, SMALL)
    assert journal.records() == {ref(0).uid: record(0, 98), ref(1).uid: record(1, 99)}
    assert list(journal.unsent()) == list(rows(1))
    assert journal.memory().highest_fence == 3
    await journal.close()


async def test_a_journal_that_is_full_of_life_is_not_rewritten_each_time(tmp_path: Path) -> None:
    journal = FileJournal.open(tmp_path, SMALL)
    for n in range(50):
        await journal.commit(put=record(n))
    await journal.close()
    frames = (tmp_path / FILE_NAME).read_bytes().count(b"\n")
    assert frames == 51


@pytest.mark.parametrize("call", ["fsync", "rename", "sync_folder"])
async def test_a_kill_anywhere_in_a_compaction_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    journal = FileJournal.open(tmp_path, JournalSettings(reserve_bytes=0))
    for n in range(30):
        await journal.commit(put=record(n % 3, n))
    expected = journal.records()

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    targets = {
        "fsync": (os, "fsync"),
        "rename": (Path, "rename"),
        "sync_folder": (log_module, "sync_folder"),
    }
    log, replayed = open_log(tmp_path / FILE_NAME, 0)
    with monkeypatch.context() as patched:
        patched.setattr(*targets[call], kill)
        with pytest.raises(Killed):
            log.rewrite(map(encode_entry, replayed.state.snapshot()))
    await journal.close()
    again = FileJournal.open(tmp_path)
    assert again.records() == expected
    await again.close()


async def test_a_left_over_of_a_compaction_is_removed(tmp_path: Path) -> None:
    (tmp_path / f"{FILE_NAME}.new").write_bytes(b"half")
    await FileJournal.open(tmp_path, SMALL).close()
    assert not (tmp_path / f"{FILE_NAME}.new").exists()


async def test_a_commit_that_failed_is_not_there_and_the_next_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = FileJournal.open(tmp_path, SMALL)
    await journal.commit(put=record(1))

    def short(descriptor: int, data: bytes, offset: int) -> None:
        os.pwrite(descriptor, data[: len(data) // 2], offset)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(log_module, "write_at", short)
        with pytest.raises(JournalFailed, match="Input/output error") as caught:
            await journal.commit(put=record(2))
    assert caught.value.reason is Reason.JOURNAL_FAILED
    assert list(journal.records()) == [ref(1).uid]
    await journal.commit(put=record(3))
    await journal.close()
    again = FileJournal.open(tmp_path, SMALL)
    assert list(again.records()) == [ref(1).uid, ref(3).uid]
    await again.close()


async def test_after_a_failed_fsync_the_file_is_replaced_before_anything_is_appended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = FileJournal.open(tmp_path, SMALL)
    await journal.commit(put=record(1))
    inode = (tmp_path / FILE_NAME).stat().st_ino

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail)
        with pytest.raises(JournalFailed):
            await journal.commit(put=record(2))
    await journal.commit(put=record(3))
    assert (tmp_path / FILE_NAME).stat().st_ino != inode
    await journal.close()
    again = FileJournal.open(tmp_path, SMALL)
    assert list(again.records()) == [ref(1).uid, ref(3).uid]
    await again.close()


@pytest.mark.root
async def test_on_a_full_disk_the_reserve_keeps_the_journal_going_and_then_it_says_so(full_disk: Path) -> None:
    settings = JournalSettings(reserve_bytes=2**20, compact_bytes=2**30)
    journal = FileJournal.open(full_disk, settings)
    reserve = full_disk / f"{FILE_NAME}.reserve"
    assert reserve.stat().st_blocks * 512 == 2**20
    fill(full_disk / "ballast")
    with pytest.raises(JournalFailed, match=r"No space left on device.*make room"):
        await commit_until_it_fails(journal)
    last = journal.record(ref(1).uid)
    assert last is not None
    assert last.operations > 100
    assert not reserve.exists()
    (full_disk / "ballast").unlink()
    await journal.commit(put=record(2))
    await journal.close()
    journal = FileJournal.open(full_disk, settings)
    assert journal.record(ref(1).uid) == last
    assert journal.record(ref(2).uid) == record(2)
    await journal.close()


async def commit_until_it_fails(journal: FileJournal) -> None:
    for n in range(10_000):
        await journal.commit(put=record(1, n))


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """4 MiB that a test can fill."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


def fill(path: Path) -> None:
    room = os.statvfs(path.parent)
    path.write_bytes(bytes(room.f_bavail * room.f_frsize))


async def test_a_message_that_is_no_text_does_not_fail_the_commit(tmp_path: Path) -> None:
    journal = FileJournal.open(tmp_path, SMALL)
    finished = rows(1)[1]
    assert isinstance(finished, OperationFinished)
    await journal.commit(rows=[replace(finished, message="file \udce4")])
    await journal.close()
    journal = FileJournal.open(tmp_path, SMALL)
    assert list(journal.unsent()) == [replace(finished, message="file ?")]
    await journal.close()


async def test_a_full_outbox_refuses_and_drops_nothing(tmp_path: Path) -> None:
    journal = FileJournal.open(tmp_path, JournalSettings(reserve_bytes=0, unsent_rows=4))
    results = await asyncio.gather(
        *(journal.commit(put=record(n), rows=rows(n)) for n in range(4)), return_exceptions=True
    )
    refused = [result for result in results if result is not None]
    assert len(refused) == 2
    assert all(isinstance(error, JournalFailed) and "bring the ledger back" in str(error) for error in refused)
    assert list(journal.unsent()) == [*rows(0), *rows(1)]
    assert list(journal.records()) == [ref(0).uid, ref(1).uid]
    await journal.commit(put=record(9))
    await journal.sent(2)
    await journal.commit(rows=rows(3))
    await journal.close()


@pytest.fixture
def disk_answers(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set: it does. Cleared: what is written waits until it is set again."""
    answers, real = threading.Event(), os.fdatasync
    answers.set()

    def sync(descriptor: int) -> None:
        assert answers.wait(30)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", sync)
    return answers


@pytest.mark.parametrize("gives_up", ["deadline", "cancelled"])
@pytest.mark.parametrize("act", ["sent", "set_aside"])
async def test_a_confirmation_that_is_made_after_its_caller_gave_up_costs_no_later_row(
    tmp_path: Path, disk_answers: threading.Event, gives_up: str, act: str
) -> None:
    journal = FileJournal.open(tmp_path, JournalSettings(reserve_bytes=0, deadline_seconds=3.0))
    await journal.commit(put=record(1), rows=rows(1))

    async def confirm() -> None:
        await (journal.sent(2) if act == "sent" else journal.set_aside())

    disk_answers.clear()
    confirming = asyncio.create_task(confirm())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    if gives_up == "cancelled":
        confirming.cancel()
    with pytest.raises((JournalFailed, asyncio.CancelledError)):
        await confirming
    assert list(journal.unsent()) == [*rows(1)], "it was read before the disk had it"
    disk_answers.set()
    await journal.commit(put=record(2), rows=rows(2))
    with pytest.raises(JournalFailed, match="an earlier answer was written only now"):
        await journal.sent(2)
    left = [*rows(2)] if act == "sent" else [rows(1)[1], *rows(2)]
    assert list(journal.unsent()) == left
    await journal.sent(len(left))
    assert list(journal.unsent()) == []
    await journal.close()


async def test_a_disk_that_does_not_answer_is_an_error_in_time(tmp_path: Path, disk_answers: threading.Event) -> None:
    journal = FileJournal.open(tmp_path, JournalSettings(reserve_bytes=0, deadline_seconds=0.05))
    disk_answers.clear()
    with pytest.raises(JournalFailed, match="did not answer within"):
        await journal.commit(put=record(1))
    disk_answers.set()
    await journal.close()
    with pytest.raises(JournalFailed, match="closed"):
        await journal.commit(put=record(2))


async def test_a_cancelled_commit_is_there_entirely(tmp_path: Path) -> None:
    journal = FileJournal.open(tmp_path, SMALL)
    commit = asyncio.create_task(journal.commit(put=record(1), rows=rows(1)))
    await asyncio.sleep(0)
    commit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await commit
    await journal.close()
    again = FileJournal.open(tmp_path, SMALL)
    assert again.record(ref(1).uid) == record(1)
    assert list(again.unsent()) == list(rows(1))
    await again.close()


async def test_commits_at_once_share_fsyncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = FileJournal.open(tmp_path, JournalSettings(reserve_bytes=0))
    real, syncs = os.fdatasync, 0

    def count(descriptor: int) -> None:
        nonlocal syncs
        syncs += 1
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", count)
    await asyncio.gather(*(journal.commit(put=record(n)) for n in range(1000)))
    await journal.close()
    assert syncs < 20


_COMMITTER = """
import asyncio, sys, structlog
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
from pathlib import Path
from perdure.journal.file import FileJournal, JournalSettings
from tests.unit.journal.samples import record, ref

async def one(journal, uid):
    for n in range(journal.records()[ref(uid).uid].operations + 1 if ref(uid).uid in journal.records() else 1, 10**6):
        await journal.commit(put=record(uid, n))
        print(uid, n, flush=True)

async def main():
    journal = FileJournal.open(Path(sys.argv[1]), JournalSettings(reserve_bytes=0, compact_bytes=20000))
    await asyncio.gather(*(one(journal, uid) for uid in range(4)))

asyncio.run(main())
"""


def test_what_was_confirmed_before_a_kill_is_there_after_it(tmp_path: Path) -> None:
    dice = random.Random(7)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    confirmed: dict[int, int] = {}
    for _ in range(6):
        lines = dice.randrange(20, 400)
        with subprocess.Popen(
            [sys.executable, "-c", _COMMITTER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            output = [process.stdout.readline() for _ in range(lines)]
            process.kill()
            output += process.stdout.readlines()
        for uid, n in (map(int, line.split()) for line in output if line.endswith("\n")):
            confirmed[uid] = n
        _, replayed = open_log(tmp_path / FILE_NAME, 0)
        for uid, n in confirmed.items():
            assert replayed.state.records[ref(uid).uid].operations in (n, n + 1)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 3), max_size=30))
def test_any_sequence_of_commits_is_read_back(uids: list[int]) -> None:
    async def run(state_dir: Path) -> None:
        journal = FileJournal.open(state_dir, SMALL)
        for n, uid in enumerate(uids):
            await journal.commit(put=record(uid, n), rows=rows(n), forget=ref(n % 2).uid if n % 5 == 4 else None)
        records, unsent = journal.records(), journal.unsent()
        await journal.close()
        journal = FileJournal.open(state_dir, SMALL)
        assert journal.records() == records
        assert journal.unsent() == unsent
        await journal.close()

    with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(run(Path(folder)))
