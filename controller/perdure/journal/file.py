"""`FileJournal`: the `Journal` port on a file in the state folder. The agent and standalone open it under `NodeLock`.

Group commit: while one fsync is under way in the journal's own thread, further commits gather and share the next one.
What a commit changed is visible to `records()` and the like only after it is durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import structlog

from perdure.api.names import Uid
from perdure.journal.errors import JournalFailed
from perdure.journal.frames import encode_entry
from perdure.journal.log import Log, open_log
from perdure.journal.state import Entry, Row, State
from perdure.plan.world import Record
from perdure.reconcile.ports.journal import LedgerRow, NodeMemory

_logger = structlog.get_logger(__name__)

FILE_NAME = "journal"


@dataclass(frozen=True, slots=True)
class JournalSettings:
    reserve_bytes: int = 64 * 2**20
    """Put aside for a full disk (see `reserve.py`); 0 = none. More is better where many runtimes share the node."""
    deadline_seconds: float = 30.0
    """A commit that the disk did not take by then is an error. It may still become durable: commits are repeatable."""
    compact_bytes: int = 4 * 2**20
    """The file is rewritten once it is larger than this and mostly dead."""
    dead_ratio: int = 4
    """"Mostly dead": this many times more entries in the file than things to remember."""
    unsent_rows: int = 50_000
    """Most rows that may wait for the ledger, about 1 KiB of memory each. A commit with more is refused: nothing is
    done that could not be told, and nothing that was done is dropped."""


@dataclass(slots=True)
class _Waiting:
    entry: Entry
    data: bytes
    done: asyncio.Future[None]


class FileJournal:
    """Not to be shared by two processes: hold `NodeLock`. One event loop uses it."""

    def __init__(self, log: Log, state: State, settings: JournalSettings) -> None:
        self._log = log
        self._state = state
        self._settings = settings
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        self._waiting: list[_Waiting] = []
        self._writer: asyncio.Task[None] | None = None
        self._rows_on_the_way = 0
        self._sending = asyncio.Lock()
        self._unanswered: asyncio.Future[None] | None = None
        """Of a change to the rows that wait, whose caller was cancelled or ran out of time: it may yet be made."""
        self._compact_above = settings.compact_bytes
        self._closed = False

    @classmethod
    def open(cls, state_dir: Path, settings: JournalSettings | None = None) -> FileJournal:
        """Open or make the journal of a state folder. Blocking, milliseconds: called before anything else runs.

        Raises `JournalFailed` when it cannot be read whole, is of a newer format, or cannot be written.
        """
        settings = settings or JournalSettings()
        log, replayed = open_log(state_dir / FILE_NAME, settings.reserve_bytes)
        _logger.info(
            "journal_opened",
            path=str(log.path),
            records=len(replayed.state.records),
            unsent=len(replayed.state.unsent),
            refused=len(replayed.state.aside),
            bytes=log.size,
        )
        return cls(log, replayed.state, settings)

    async def close(self) -> None:
        """Wait for the commits under way, then close the file. Further commits are refused."""
        if self._closed:
            return
        self._closed = True
        if self._writer is not None:
            await self._writer
        await asyncio.get_running_loop().run_in_executor(self._thread, self._log.close)
        self._thread.shutdown()

    # ------------------------------------------------------------------------------------------ the port

    def records(self) -> Mapping[Uid, Record]:
        """A copy: it does not change under a caller that awaits while it reads."""
        return dict(self._state.records)

    def record(self, uid: Uid) -> Record | None:
        return self._state.records.get(uid)

    def memory(self) -> NodeMemory:
        return self._state.memory

    def unsent(self) -> Sequence[LedgerRow]:
        return tuple(self._state.unsent)

    async def commit(
        self,
        *,
        put: Record | None = None,
        forget: Uid | None = None,
        rows: Sequence[LedgerRow] = (),
        memory: NodeMemory | None = None,
    ) -> None:
        """See `Journal`. A cancelled caller's commit is still made: it is there entirely or not at all."""
        limit = self._settings.unsent_rows
        kept = len(self._state.unsent) + len(self._state.aside) + self._rows_on_the_way
        if rows and kept + len(rows) > limit:
            raise JournalFailed(
                f"committing to the node journal {self._log.path}: {limit} rows already wait for the ledger, "
                "which is the most that are kept; bring the ledger back, work goes on by itself then"
            )
        await self._durable(Entry(put=put, forget=forget, rows=tuple(map(Row.of, rows)), memory=memory))

    async def sent(self, count: int) -> None:
        """See `Journal`. One task sends: `count` is of the `unsent()` that it read. Raises `ValueError` for more."""
        async with self._sending:
            await self._after_the_unanswered()
            if not 0 <= count <= len(self._state.unsent):
                raise ValueError(f"{count} rows cannot be confirmed: {len(self._state.unsent)} are waiting")
            if count:
                await self._change_waiting(Entry(sent=count))

    def refused(self) -> Sequence[LedgerRow]:
        return tuple(self._state.aside)

    async def set_aside(self) -> None:
        """See `Journal`. Raises `ValueError` if nothing is waiting."""
        async with self._sending:
            await self._after_the_unanswered()
            if not self._state.unsent:
                raise ValueError("no row can have been refused: none is waiting")
            await self._change_waiting(Entry(sent=1, aside=(Row.of(self._state.unsent[0]),)))

    async def take_back(self) -> None:
        async with self._sending:
            await self._after_the_unanswered()
            if self._state.aside:
                await self._change_waiting(Entry(back=True))

    async def _change_waiting(self, entry: Entry) -> None:
        """Rows are named by their place in the line, so one such change is made at a time."""
        done = self._begin(entry)
        try:
            await self._answer_to(done)
        finally:
            if not done.done():
                self._unanswered = done

    async def _after_the_unanswered(self) -> None:
        """Raises `JournalFailed` if an earlier change was made after all: its caller gave up, and whoever read what waits
        before may have read too early, and would name other rows than it means."""
        unanswered = self._unanswered
        if unanswered is None:
            return
        try:
            await self._answer_to(unanswered)
        except JournalFailed:
            if not unanswered.done():
                raise
            self._unanswered = None
            return
        self._unanswered = None
        raise JournalFailed(
            f"telling the node journal {self._log.path} what the ledger has: an earlier answer was written only now; "
            "what waits is read and sent again, which changes nothing in the ledger"
        )

    # ------------------------------------------------------------------------------------------ group commit

    async def _durable(self, entry: Entry) -> None:
        await self._answer_to(self._begin(entry))

    def _begin(self, entry: Entry) -> asyncio.Future[None]:
        """Have it written; done when it is durable and applied."""
        if self._closed:
            raise JournalFailed(f"committing to the node journal {self._log.path}: it is closed, the agent is ending")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(_look_at_error)
        self._waiting.append(_Waiting(entry, encode_entry(entry), done))
        self._rows_on_the_way += len(entry.rows)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._drain(), name="journal-writer")
        return done

    async def _answer_to(self, done: asyncio.Future[None]) -> None:
        try:
            async with asyncio.timeout(self._settings.deadline_seconds):
                await asyncio.shield(done)
        except TimeoutError as error:
            raise JournalFailed(
                f"committing to the node journal {self._log.path}: the disk did not answer within "
                f"{self._settings.deadline_seconds:g} s; check the disk under the state folder"
            ) from error

    async def _drain(self) -> None:
        """Write what waits, batch by batch, until nothing does. The only one that uses the log or changes the state."""
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await self._append([waiting.data for waiting in batch])
            except OSError as error:
                self._refuse(batch, error)
                continue
            finally:
                self._rows_on_the_way -= sum(len(waiting.entry.rows) for waiting in batch)
            for waiting in batch:
                self._state.apply(waiting.entry)
                if not waiting.done.done():
                    waiting.done.set_result(None)
            await self._compact_if_mostly_dead()

    async def _append(self, entries: list[bytes]) -> None:
        if self._log.suspect:
            await self._rewrite()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._log.append, entries)

    def _refuse(self, batch: list[_Waiting], error: OSError) -> None:
        _logger.error("journal_commit_failed", path=str(self._log.path), commits=len(batch), error=str(error))
        for waiting in batch:
            if not waiting.done.done():
                failure = JournalFailed(
                    f"committing to the node journal {self._log.path}: {error.strerror or error}; nothing that needs "
                    "it is done until it can be written: make room on, or mend, the disk under the state folder"
                )
                failure.__cause__ = error
                waiting.done.set_exception(failure)

    async def _compact_if_mostly_dead(self) -> None:
        log, state = self._log, self._state
        if log.size <= self._compact_above or log.entries <= self._settings.dead_ratio * state.live:
            return
        before = log.size
        try:
            await self._rewrite()
        except OSError as error:
            # The old file is still whole and in use; a later commit tries again, after half as much more.
            self._compact_above = before + before // 2
            _logger.warning("journal_compaction_failed", path=str(log.path), error=str(error))
            return
        self._compact_above = max(self._settings.compact_bytes, 2 * log.size)
        _logger.info("journal_compacted", path=str(log.path), bytes_before=before, bytes=log.size)

    async def _rewrite(self) -> None:
        # Nothing applies entries while the writer waits here, so the snapshot is of one instant.
        entries = map(encode_entry, self._state.snapshot())
        await asyncio.get_running_loop().run_in_executor(self._thread, self._log.rewrite, entries)


def _look_at_error(done: asyncio.Future[None]) -> None:
    """A caller that was cancelled or ran out of time reads no result: without this, asyncio logs it as lost."""
    if not done.cancelled():
        done.exception()
