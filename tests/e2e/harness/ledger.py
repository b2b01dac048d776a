"""Reads the ledger as an auditor would: rows of operations and archives, nothing else."""

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

CONNECT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Ledger:
    """One ledger's database."""

    url: str

    def operations(self, uid: str) -> list[dict[str, Any]]:
        """All operations of one life, oldest first."""
        return self._rows("SELECT * FROM operations WHERE uid = %s ORDER BY happened_at, recorded_at", uid)

    def edges(self, uid: str) -> list[tuple[str, str | None, str | None, str | None]]:
        """(op, before, after, outcome) of all operations of one life, oldest first."""
        return [(row["op"], row["before"], row["after"], row["outcome"]) for row in self.operations(uid)]

    def health_events(self, uid: str) -> list[tuple[str, str | None, int | None]]:
        """(event, probe, exit code) of one life, oldest first."""
        rows = self._rows("SELECT * FROM health_events WHERE uid = %s ORDER BY happened_at, recorded_at", uid)
        return [(row["event"], row["probe"], row["exit_code"]) for row in rows]

    def archives(self, uid: str) -> list[dict[str, Any]]:
        """The catalogue's rows of one life, in their order."""
        return self._rows("SELECT * FROM archives WHERE uid = %s ORDER BY sequence", uid)

    def execute(self, statement: str) -> None:
        """What a hand on the database would do, for tests about that."""
        with psycopg.connect(self.url, autocommit=True, connect_timeout=CONNECT_SECONDS) as connection:
            connection.execute(statement.encode())

    def _rows(self, query: str, *values: str) -> list[dict[str, Any]]:
        with psycopg.connect(self.url, connect_timeout=CONNECT_SECONDS, row_factory=dict_row) as connection:
            return connection.execute(query.encode(), values).fetchall()
