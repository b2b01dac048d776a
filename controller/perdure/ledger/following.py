"""What is new in the history, again and again: behind `perdure history --follow`. Reads only.

Asks once in a while rather than listens: NOTIFY takes a lock of the whole database at each commit of every agent, for a
reader that is hardly ever there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from psycopg import sql
from psycopg.rows import DictRow

from perdure.ledger.database import Connection, Database
from perdure.ledger.history import (
    COLUMNS,
    HistoryQuery,
    HistoryRow,
    conditions,
    has_outcome,
    history_row,
    page_statement,
    parameters,
)

Key = tuple[str, str]
"""Installation and id."""

_OVERLAP = timedelta(seconds=20)
"""A row is stamped when its transaction begins and seen when it ends; that takes at most a statement's time limit and
the one of an idle transaction (`DatabaseSettings`). So long ago is looked at again, and what was seen is left out."""
_MOST_OPEN = 10_000
"""Operations under way whose end is waited for."""
_ONE_SNAPSHOT = sql.SQL("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
_NOW = sql.SQL("SELECT now() AS now")


@dataclass(slots=True)
class Follower:
    """One reader's place in the history: `first` once, then `news` as often as wanted."""

    database: Database
    query: HistoryQuery
    _seen: dict[Key, datetime] = field(default_factory=dict)
    """Rows that the overlap may bring again, and when they were recorded."""
    _open: set[Key] = field(default_factory=set)
    """Seen, and under way then."""
    _from: datetime | None = None

    async def first(self) -> list[HistoryRow]:
        """The newest rows, oldest first. Raises `LedgerUnavailable`."""

        async def ask(connection: Connection) -> tuple[datetime, list[DictRow], list[DictRow]]:
            # All of one snapshot: what is committed in between is news.
            async with connection.transaction():
                await connection.execute(_ONE_SNAPSHOT)
                (now,) = await (await connection.execute(_NOW)).fetchall()
                known = {**parameters(self.query), "from": now["now"] - _OVERLAP}
                page = await (await connection.execute(page_statement(self.query), known)).fetchall()
                young = await (await connection.execute(self._young(), known)).fetchall()
            return now["now"], page, young

        now, page, young = await self.database.run(f"reading the history of {self.query}", ask)
        self._from = now - _OVERLAP
        for row in (*young, *page):
            self._remember((row["installation"], row["id"]), row["recorded_at"], ended=row["finished_at"] is not None)
        return [history_row(row) for row in page][::-1]

    async def news(self) -> list[HistoryRow]:
        """What was begun or has ended since the last call, oldest first. Raises `LedgerUnavailable`: nothing is lost, the
        next call tells it."""

        async def ask(connection: Connection) -> tuple[datetime, list[HistoryRow]]:
            (now,) = await (await connection.execute(_NOW)).fetchall()
            rows = await (await connection.execute(self._newer(), self._parameters())).fetchall()
            return now["now"], [history_row(row) for row in rows]

        now, rows = await self.database.run(f"following the history of {self.query}", ask)
        fresh = [row for row in rows if self._is_news(row)]
        for row in fresh:
            self._remember((row.installation, row.id), row.recorded_at, ended=row.finished_at is not None)
        self._from = now - _OVERLAP
        self._seen = {key: at for key, at in self._seen.items() if at > self._from}
        return [row for row in fresh if has_outcome(self.query, row)]

    def _is_news(self, row: HistoryRow) -> bool:
        key = (row.installation, row.id)
        if key in self._open:
            return row.finished_at is not None
        return key not in self._seen

    def _remember(self, key: Key, recorded_at: datetime, *, ended: bool) -> None:
        self._seen[key] = recorded_at
        if ended:
            self._open.discard(key)
        else:
            self._open.add(key)

    def _young(self) -> sql.SQL:
        """What the overlap would bring as news, and what is under way."""
        columns = "SELECT installation, id, recorded_at, finished_at FROM operations"
        young = " AND ".join(["recorded_at > %(from)s", *conditions(self.query)])
        under_way = " AND ".join(["finished_at IS NULL", *conditions(self.query)])
        return sql.SQL(f"{columns} WHERE {young} UNION ({columns} WHERE {under_way} LIMIT {_MOST_OPEN})")

    def _newer(self) -> sql.SQL:
        where = " AND ".join(["recorded_at > %(from)s", *conditions(self.query)])
        recorded = f"SELECT {COLUMNS} FROM operations WHERE {where}"
        ended = (
            f"SELECT {COLUMNS} FROM operations"
            " WHERE (installation, id) IN (SELECT * FROM unnest(%(installations)s::text[], %(ids)s::text[]))"
            "   AND finished_at IS NOT NULL"
        )
        return sql.SQL(f"{recorded} UNION {ended} ORDER BY recorded_at, id")

    def _parameters(self) -> dict[str, object]:
        keys = sorted(self._open)
        return {
            **parameters(self.query),
            "from": self._from,
            "installations": [installation for installation, _id in keys],
            "ids": [name for _installation, name in keys],
        }
