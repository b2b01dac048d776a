"""The months of `operations` and `health_events`: made ahead, and dropped when nothing in them is young any more. For the
active controller.

The work is done by functions of the schema (migrations 3, 5 and 9). Lives (`runtimes`) and archives are kept whatever
happens here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import structlog
from psycopg import sql

from perdure.ledger.database import Connection, Database

_logger = structlog.get_logger(__name__)

LEAST_KEPT_DAYS = 90
"""No setting keeps operations for less: who did what must be known for a quarter at least."""
_MONTHS_AHEAD = 3
"""So long the controller may be away before rows of later months go into the last one that there is."""

MOVE_SECONDS = 600.0
"""For moving on what is to be kept of one month: it locks nobody out, and there may be much where nothing was dropped for
long."""
_OF_SERVER = 0.9
"""Of that time: the server itself ends the statement before its caller gives up."""

_MOVING = sql.SQL(f"SET LOCAL statement_timeout = {round(_OF_SERVER * MOVE_SECONDS * 1000)}")
# Whoever writes waits while a month is dropped; rather than to queue them up behind a long reader, it is tried again later.
_IMPATIENCE = sql.SQL("SET LOCAL lock_timeout = '2s'")
_MAKE = sql.SQL("""
SELECT month FROM make_operation_months(
    ((now() AT TIME ZONE 'UTC') - interval '1 month')::date,
    ((now() AT TIME ZONE 'UTC') + make_interval(months => %(ahead)s))::date
) AS made (month)
 UNION
SELECT month FROM make_health_months(
    ((now() AT TIME ZONE 'UTC') - interval '1 month')::date,
    ((now() AT TIME ZONE 'UTC') + make_interval(months => %(ahead)s))::date
) AS made (month)
 ORDER BY month
""")
_OLD_OPERATIONS = sql.SQL("SELECT old_operation_months(make_interval(days => %(days)s)) AS month")
_OLD_HEALTH = sql.SQL("SELECT old_health_months(make_interval(days => %(days)s)) AS month")
_MOVE_ON = sql.SQL("SELECT move_operations_on(%(month)s, make_interval(days => %(days)s)) AS moved")
_DROP_OPERATIONS = sql.SQL("SELECT drop_operation_month(%(month)s, make_interval(days => %(days)s)) AS done")
_DROP_HEALTH = sql.SQL("SELECT drop_health_month(%(month)s, make_interval(days => %(days)s)) AS done")


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What was done: the first day of each month."""

    made: tuple[date, ...]
    dropped: tuple[date, ...]


async def keep_months(database: Database, kept_days: int) -> Upkeep:
    """Make what is missing, then drop what is older than `kept_days`, reckoned from when a row was recorded or ended.

    Oldest first, and each month by itself: what was dropped stays so whatever becomes of the next one. May be repeated
    and may race. Raises `LedgerUnavailable`, also where the role does not own the tables; ValueError for less than
    `LEAST_KEPT_DAYS`.
    """
    if kept_days < LEAST_KEPT_DAYS:
        raise ValueError(f"operations are kept for {LEAST_KEPT_DAYS} days at least, not {kept_days}")

    async def make(connection: Connection) -> tuple[date, ...]:
        async with connection.transaction():
            await connection.execute(_IMPATIENCE)
            rows = await (await connection.execute(_MAKE, {"ahead": _MONTHS_AHEAD})).fetchall()
        return tuple(row["month"] for row in rows)

    made = await database.run("making tables for the history of the coming months", make)
    for month in made:
        _logger.info("history_month_made", month=month.isoformat())
    dropped = set()
    for month in await _old(database, _OLD_OPERATIONS, kept_days):
        await _move_on(database, month, kept_days)
        if await _drop(database, f"operations of {month:%Y-%m}", _DROP_OPERATIONS, month, kept_days):
            dropped.add(month)
    for month in await _old(database, _OLD_HEALTH, kept_days):
        if await _drop(database, f"health events of {month:%Y-%m}", _DROP_HEALTH, month, kept_days):
            dropped.add(month)
    return Upkeep(made, tuple(sorted(dropped)))


async def _old(database: Database, statement: sql.SQL, kept_days: int) -> tuple[date, ...]:
    rows = await database.rows("looking for months that are to be dropped", statement, {"days": kept_days})
    return tuple(row["month"] for row in rows)


async def _move_on(database: Database, month: date, kept_days: int) -> None:
    async def move(connection: Connection) -> int:
        async with connection.transaction():
            await connection.execute(_MOVING)
            row = await (await connection.execute(_MOVE_ON, {"month": month, "days": kept_days})).fetchone()
        return row["moved"] if row is not None else 0

    doing = f"moving on what is to be kept of the operations of {month:%Y-%m}"
    if moved := await database.run(doing, move, MOVE_SECONDS):
        _logger.info("history_operations_moved_on", month=month.isoformat(), count=moved)


async def _drop(database: Database, what: str, statement: sql.SQL, month: date, kept_days: int) -> bool:
    async def drop(connection: Connection) -> bool:
        async with connection.transaction():
            await connection.execute(_IMPATIENCE)
            row = await (await connection.execute(statement, {"month": month, "days": kept_days})).fetchone()
        return row is not None and bool(row["done"])

    done = await database.run(f"dropping {what}, older than {kept_days} days", drop)
    if done:
        _logger.info("history_month_dropped", what=what, month=month.isoformat(), kept_days=kept_days)
    return done
