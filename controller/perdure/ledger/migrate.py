"""Brings the ledger's schema to this program's version, and refuses a schema that is newer. Called at every start.

The controller and standalone migrate; an agent's role may not, so it only checks.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import structlog
from psycopg import sql

from perdure.ledger.database import Connection, Database
from perdure.reconcile.ports.errors import LedgerUnavailable

_logger = structlog.get_logger(__name__)

_ADVISORY_LOCK = 0x7065726475726501  # "perdure" and 1
_FILE = re.compile(r"([0-9]{4})_([a-z_]+)\.sql")
_PATIENCE = sql.SQL("SET LOCAL statement_timeout = '120s'")
_LOCK = sql.SQL("SELECT pg_advisory_xact_lock({})").format(_ADVISORY_LOCK)
_EXISTS = sql.SQL("SELECT to_regclass('perdure_migrations') IS NOT NULL AS it")
_CREATE = sql.SQL(
    "CREATE TABLE IF NOT EXISTS perdure_migrations (version integer PRIMARY KEY, name text NOT NULL, sha256 text NOT NULL,"
    " applied_at timestamptz NOT NULL DEFAULT now())"
)
_APPLIED = sql.SQL("SELECT version, sha256 FROM perdure_migrations")
_RECORD = sql.SQL("INSERT INTO perdure_migrations (version, name, sha256) VALUES (%s, %s, %s)")


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


@cache
def known_migrations() -> tuple[Migration, ...]:
    """The migrations that this program brings, oldest first."""
    found = []
    for file in files("perdure.ledger.migrations").iterdir():
        if match := _FILE.fullmatch(file.name):
            found.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    return tuple(sorted(found, key=lambda migration: migration.version))


async def migrate(database: Database) -> None:
    """Apply what is missing, all of it or nothing; processes that start at once take turns.

    Raises `LedgerUnavailable`, also for a schema that is newer or that was changed by hand.
    """
    await database.run("bringing the ledger's schema up to date", _migrate)


async def check_schema(database: Database) -> None:
    """Raises `LedgerUnavailable` unless the schema is the one that this program was written for."""
    check_applied(await database.run("reading the version of the ledger's schema", _applied))


def check_applied(applied: Mapping[int, str]) -> None:
    """The same of what is known to be applied: the hash of each migration's text by its number."""
    if missing := _missing(applied):
        raise LedgerUnavailable(
            f"reading the version of the ledger's schema: migration {missing[0].version} is not applied; start the "
            "controller of this version first, it migrates the ledger"
        )


async def _migrate(connection: Connection) -> None:
    if not _missing(await _applied(connection)):
        return
    async with connection.transaction():
        await connection.execute(_PATIENCE)
        await connection.execute(_LOCK)
        await connection.execute(_CREATE)
        for migration in _missing(await _read_applied(connection)):
            await connection.execute(sql.SQL(migration.text))
            await connection.execute(_RECORD, (migration.version, migration.name, migration.sha256))
            _logger.info("ledger_migrated", version=migration.version, name=migration.name)


async def _applied(connection: Connection) -> dict[int, str]:
    row = await (await connection.execute(_EXISTS)).fetchone()
    return await _read_applied(connection) if row is not None and row["it"] else {}


async def _read_applied(connection: Connection) -> dict[int, str]:
    rows = await (await connection.execute(_APPLIED)).fetchall()
    return {row["version"]: row["sha256"] for row in rows}


def _missing(applied: Mapping[int, str]) -> list[Migration]:
    """What is still to be applied. Raises `LedgerUnavailable` if what was applied is not ours."""
    known = known_migrations()
    newest = max(migration.version for migration in known)
    if applied and max(applied) > newest:
        raise LedgerUnavailable(
            f"reading the version of the ledger's schema: it is {max(applied)}, and this program knows {newest} at "
            "most; run the newer version of perdure again (a ledger is never taken back to an older schema)"
        )
    for migration in known:
        if applied.get(migration.version, migration.sha256) != migration.sha256:
            raise LedgerUnavailable(
                f"reading the version of the ledger's schema: migration {migration.version} ({migration.name}) was "
                "applied from another text than this program has; use a released version of perdure"
            )
    return [migration for migration in known if migration.version not in applied]
