"""What a controller does about the ledger beside its work: the months of the history."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import structlog
from psycopg import sql
from structlog.testing import capture_logs

from perdure.cli.ledgers import keep_months_daily
from perdure.ledger.database import Connection, Database
from perdure.ledger.migrate import migrate

pytestmark = pytest.mark.env

MONTHS = sql.SQL("SELECT count(*) AS n FROM operation_months")
REMOVE_THE_LAST = b"""
DO $$ DECLARE latest date; BEGIN
    DELETE FROM operation_months WHERE month = (SELECT max(month) FROM operation_months) RETURNING month INTO latest;
    EXECUTE format('DROP TABLE %I', to_char(latest, '"operations_"YYYY"_"MM'));
END $$
"""

Log = list[structlog.typing.EventDict]


async def until(met: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not met():  # noqa: ASYNC110 (nothing tells us of a log line)
            await asyncio.sleep(0.02)


def told(log: Log, event: str) -> Mapping[str, object] | None:
    return next((line for line in log if line["event"] == event), None)


async def test_months_are_made_at_once_and_a_failure_is_told_and_survived(database_url: str) -> None:
    async with Database(database_url) as database:
        with capture_logs() as log:
            too_early = asyncio.create_task(keep_months_daily(database, 90))
            await until(lambda: told(log, "months_not_kept") is not None)
            assert not too_early.done()
            too_early.cancel()
        line = told(log, "months_not_kept")
        assert line is not None
        assert "make_operation_months" in str(line["error"])

        await migrate(database)
        before = await database.row("counting", MONTHS, {})

        async def remove(connection: Connection) -> None:
            await connection.execute(REMOVE_THE_LAST)

        await database.run("removing a month", remove)
        with capture_logs() as log:
            daily = asyncio.create_task(keep_months_daily(database, 90))
            await until(lambda: told(log, "history_month_made") is not None)
            daily.cancel()
        assert await database.row("counting", MONTHS, {}) == before
