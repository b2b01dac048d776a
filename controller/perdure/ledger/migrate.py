"""Brings the ledger's schema to this program's version, and refuses a schema that is newer. Called at every start.

The controller and standalone migrate; an agent's role may not, so it only checks. Each migration is a transaction of its
own, in which the schema's table records it: whoever is ended in between is carried on by the next one to start.
"""

from __future__ import annotations

import hashlib
import re
import time
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
MIGRATION_SECONDS = 1800.0
"""For one migration, the wait for another process that migrates included: one that rewrites the operations of a large
ledger takes minutes."""
_OF_SERVER = 0.9
"""Of that time: then the server itself ends the statement, rather than to go on with it for nobody."""
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


async def migrate(database: Database, seconds: float = MIGRATION_SECONDS) -> None:
    """Apply what is missing, one after the other; processes that start at once take turns. `seconds`: for each.

    Raises `LedgerUnavailable`, also for a schema that is newer or that was changed by hand. What was applied until then
    stays, and is not applied again.
    """

    async def apply_next(connection: Connection) -> Migration | None:
        return await _apply_next(connection, seconds)

    while True:
        began = time.monotonic()
        applied = await database.run("bringing the ledger's schema up to date", apply_next, seconds)
        if applied is None:
            return
        _logger.info(
            "ledger_migrated", version=applied.version, name=applied.name, seconds=round(time.monotonic() - began, 3)
        )


def check_applied(applied: Mapping[int, str]) -> None:
    """`applied`: the hash of each migration's text by its number. Raises `LedgerUnavailable` unless the schema is the one that
    this program was written for."""
    if missing := _missing(applied):
        raise LedgerUnavailable(
            f"reading the version of the ledger's schema: migration {missing[0].version} is not applied; start the "
            "controller of this version first, it migrates the ledger"
        )


async def _apply_next(connection: Connection, seconds: float) -> Migration | None:
    """The one that was applied; None if none is missing."""
    if not _missing(await applied_to(connection)):
        return None
    async with connection.transaction():
        await connection.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(round(_OF_SERVER * seconds * 1000)))
        await connection.execute(_LOCK)
        await connection.execute(_CREATE)
        missing = _missing(await _read_applied(connection))
        if not missing:
            return None
        migration = missing[0]
        _logger.info("ledger_migrating", version=migration.version, name=migration.name, missing=len(missing))
        await connection.execute(sql.SQL(migration.text))
        await connection.execute(_RECORD, (migration.version, migration.name, migration.sha256))
    return migration


async def applied_to(connection: Connection) -> dict[int, str]:
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
