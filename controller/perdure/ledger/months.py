"""The months of `operations` and `health_events`: made ahead, and dropped when nothing in them is young any more. For the
active controller.

The work is done by functions of the schema (migrations 3 and 5). Lives (`runtimes`) and archives are kept whatever happens here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from psycopg import sql

from perdure.ledger.database import Connection, Database

LEAST_KEPT_DAYS = 90
"""No setting keeps operations for less: who did what must be known for a quarter at least."""
_MONTHS_AHEAD = 3
"""So long the controller may be away before rows of later months go into the last one that there is."""

# A month that is dropped is locked against writers for a moment; rather than to queue them up behind a long reader, it
# is tried again later.
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
_DROP = sql.SQL("""
SELECT month FROM drop_operation_months(make_interval(days => %(days)s)) AS dropped (month)
 UNION
SELECT month FROM drop_health_months(make_interval(days => %(days)s)) AS dropped (month)
 ORDER BY month
""")


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What was done: the first day of each month."""

    made: tuple[date, ...]
    dropped: tuple[date, ...]


async def keep_months(database: Database, kept_days: int) -> Upkeep:
    """Make what is missing, then drop what is older than `kept_days`, reckoned from when a row was recorded or ended.

    May be repeated and may race. Raises `LedgerUnavailable`, also where the role does not own the tables; ValueError for
    less than `LEAST_KEPT_DAYS`.
    """
    if kept_days < LEAST_KEPT_DAYS:
        raise ValueError(f"operations are kept for {LEAST_KEPT_DAYS} days at least, not {kept_days}")

    async def make(connection: Connection) -> tuple[date, ...]:
        return await _months(connection, _MAKE, {"ahead": _MONTHS_AHEAD})

    async def drop(connection: Connection) -> tuple[date, ...]:
        return await _months(connection, _DROP, {"days": kept_days})

    made = await database.run("making tables for the history of the coming months", make)
    dropped = await database.run(f"dropping operations older than {kept_days} days", drop)
    return Upkeep(made, dropped)


async def _months(connection: Connection, statement: sql.SQL, parameters: dict[str, object]) -> tuple[date, ...]:
    async with connection.transaction():
        await connection.execute(_IMPATIENCE)
        rows = await (await connection.execute(statement, parameters)).fetchall()
    return tuple(row["month"] for row in rows)
