"""Operations by month: written once across a month's edge, made ahead, dropped when old, migrated with what there was."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg import sql
from tests.integration.ledger.samples import NAME_A, NODE_A, TTL, archived, finished, ref, started

from perdure.api.names import InstallationId, Kind
from perdure.api.phases import Phase
from perdure.ledger import migrate as migrate_module
from perdure.ledger.agent import PostgresAgentLedger
from perdure.ledger.database import Connection, Database
from perdure.ledger.history import HistoryQuery, read_history
from perdure.ledger.migrate import known_migrations, migrate
from perdure.ledger.months import LEAST_KEPT_DAYS, keep_months
from perdure.plan.health import HealthKind
from perdure.plan.world import Op
from perdure.reconcile.ports.errors import LedgerUnavailable
from perdure.reconcile.ports.journal import HealthRow, OperationRow

pytestmark = pytest.mark.env

WAITING = "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
QUERY = HistoryQuery(Kind.BOT, "team-a", "bot")
ROWS = sql.SQL(
    "SELECT id, month, started_at IS NOT NULL AND finished_at IS NOT NULL AS whole FROM operations ORDER BY id"
)
MONTHS = sql.SQL("SELECT month FROM operation_months ORDER BY month")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as it:
        await migrate(it)
        yield it


@pytest.fixture
def ledger(database: Database) -> PostgresAgentLedger:
    return PostgresAgentLedger(database, InstallationId("cluster"), NODE_A)


def this_month() -> datetime:
    return datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


async def execute(database: Database, statement: str) -> None:
    """Statements of the test itself."""

    async def work(connection: Connection) -> None:
        await connection.execute(statement.encode())

    await database.run("setting the scene", work)


async def age(database: Database, days: int, which: str = "true") -> None:
    """Everything that is recorded so far was recorded so many days ago, in that day's month."""
    await execute(
        database,
        f"""
        SELECT make_operation_months((now() - interval '{days} days')::date, now()::date);
        UPDATE operations
           SET recorded_at = recorded_at - interval '{days} days', started_at = started_at - interval '{days} days',
               finished_at = finished_at - interval '{days} days',
               month = date_trunc('month', (now() - interval '{days} days') AT TIME ZONE 'UTC')
         WHERE {which}
        """,
    )


# ---------------------------------------------------------------------------------------------- once, whatever the month


async def test_an_operation_over_the_edge_of_a_month_is_one_row_in_any_order(
    ledger: PostgresAgentLedger, database: Database
) -> None:
    edge = this_month().timestamp()
    for n, order in enumerate(itertools.permutations(("start", "end", "start", "end"))):
        of = ref(f"uid-{n:02}")
        for which in order:
            row: OperationRow = started(of, at=edge - 1) if which == "start" else finished(of, at=edge + 1)
            await ledger.apply([row], NAME_A)
    rows = await database.rows("counting", ROWS, {})
    assert [(row["id"], row["whole"]) for row in rows] == [(f"uid-{n:02}/1", True) for n in range(24)]
    assert len({row["month"] for row in rows}) == 2, "both months were met"


async def test_the_same_rows_from_many_connections_at_once_are_written_once(
    database_url: str, database: Database
) -> None:
    """As when a connection was lost in the middle of a commit: the repetition meets the first try, still under way."""
    edge = this_month().timestamp()
    rows: list[OperationRow] = []
    for n in range(40):
        rows += [started(ref(f"uid-{n:02}"), at=edge - 1), finished(ref(f"uid-{n:02}"), at=edge + 1)]
    others = [Database(database_url) for _ in range(4)]
    for other in others:
        await other.open()
    ledgers = [PostgresAgentLedger(other, InstallationId("cluster"), NODE_A) for other in others]
    await asyncio.gather(*(ledger.apply(rows, NAME_A) for ledger in ledgers for _ in range(5)))
    for other in others:
        await other.close()
    written = await database.rows("counting", ROWS, {})
    assert [(row["id"], row["whole"]) for row in written] == [(f"uid-{n:02}/1", True) for n in range(40)]


@pytest.mark.parametrize("days", [-20_000, -100, 100, 20_000])
async def test_a_time_far_from_now_counts_as_now(ledger: PostgresAgentLedger, database: Database, days: int) -> None:
    """Rows that waited long in a journal are kept as long as others from when they came; a wrong clock makes no table."""
    at = (datetime.now(UTC) + timedelta(days=days)).timestamp()
    await ledger.apply([started(ref(), at=at), finished(ref(), at=at)], NAME_A)
    (row,) = await database.rows("reading", ROWS, {})
    assert row["month"] == this_month().date()


async def test_without_a_controller_for_long_the_last_month_takes_what_comes(
    ledger: PostgresAgentLedger, database: Database
) -> None:
    await execute(
        database,
        """
        DO $$ DECLARE old date; BEGIN
            FOR old IN DELETE FROM operation_months WHERE month >= date_trunc('month', now() AT TIME ZONE 'UTC') RETURNING month
            LOOP EXECUTE format('DROP TABLE %I', to_char(old, '"operations_"YYYY"_"MM')); END LOOP;
        END $$
        """,
    )
    at = datetime.now(UTC).timestamp()
    await ledger.apply([started(ref(), at=at), finished(ref(), at=at)], NAME_A)
    (row,) = await database.rows("reading", ROWS, {})
    assert row["month"] == (this_month() - timedelta(days=1)).replace(day=1).date()
    await keep_months(database, LEAST_KEPT_DAYS)
    await ledger.apply([finished(ref(), at=at)], NAME_A)
    assert len(await database.rows("reading", ROWS, {})) == 1


# ---------------------------------------------------------------------------------------------- made and dropped


async def test_months_are_made_three_ahead_and_only_once(database_url: str, database: Database) -> None:
    before = await database.rows("reading", MONTHS, {})
    await execute(database, f"DROP TABLE {before[-1]['month']:operations_%Y_%m}; DELETE FROM operation_months WHERE "
                            f"month = '{before[-1]['month']}'")  # fmt: skip
    async with Database(database_url) as another:
        both = await asyncio.gather(keep_months(database, 90), keep_months(another, 90))
    assert [month for upkeep in both for month in upkeep.made] == [before[-1]["month"]]
    assert await database.rows("reading", MONTHS, {}) == before
    assert len(before) == 5
    assert not any(upkeep.dropped for upkeep in both)


async def test_a_month_goes_when_nothing_in_it_is_young_and_what_is_under_way_stays(
    ledger: PostgresAgentLedger, database: Database, database_url: str
) -> None:
    now = datetime.now(UTC).timestamp()
    lease = await ledger.acquire("key", TTL)
    await archived(ledger, ref("gone"), lease, "op")
    await ledger.apply([started(ref("gone"), at=now), finished(ref("gone"), at=now, snapshot_key="key")], NAME_A)
    await ledger.begin(started(ref("open"), op=Op.PURGE, at=now), NAME_A, lease)
    await age(database, 200)
    await ledger.apply([started(ref("young"), at=now), finished(ref("young"), at=now)], NAME_A)

    assert (await keep_months(database, 250)).dropped == ()
    dropped = (await keep_months(database, 120)).dropped
    assert (datetime.now(UTC) - timedelta(days=200)).date().replace(day=1) in dropped
    assert {row.uid for row in await read_history(database_url, QUERY)} == {"open", "young"}
    assert (await keep_months(database, 120)).dropped == ()

    await ledger.finish(finished(ref("open"), at=now, after=Phase.REMOVED), NAME_A, lease, release=True)
    assert [(row.op, row.outcome) for row in await read_history(database_url, QUERY) if row.uid == "open"] == [
        ("purge", "success")
    ]
    lives = await database.rows("reading", sql.SQL("SELECT uid FROM runtimes UNION SELECT uid FROM archives"), {})
    assert {row["uid"] for row in lives} == {"gone", "open", "young"}, "lives and archives outlive their operations"


async def test_an_operation_that_ended_lately_is_kept_however_old_its_month(
    ledger: PostgresAgentLedger, database: Database, database_url: str
) -> None:
    now = datetime.now(UTC).timestamp()
    await ledger.apply([started(ref(), at=now)], NAME_A)
    await age(database, 200)
    await ledger.apply([finished(ref(), at=now)], NAME_A)
    assert (await keep_months(database, 120)).dropped != ()
    (row,) = await read_history(database_url, QUERY)
    assert row.outcome == "success"
    assert row.started_at is not None


async def test_less_than_a_quarter_is_refused(database: Database) -> None:
    with pytest.raises(ValueError, match="90 days at least"):
        await keep_months(database, 89)


async def test_a_long_reader_makes_the_drop_wait_for_another_day_and_no_writer_wait_for_it(
    ledger: PostgresAgentLedger, database: Database, database_url: str
) -> None:
    now = datetime.now(UTC).timestamp()
    await ledger.apply([started(ref("old"), at=now), finished(ref("old"), at=now)], NAME_A)
    await age(database, 200)

    async def read(connection: Connection) -> None:
        async with connection.transaction():
            await connection.execute("SELECT count(*) FROM operations")
            with pytest.raises(
                LedgerUnavailable, match=r"dropping operations of \d{4}-\d\d, older than 120 days: .*lock timeout"
            ):
                await keep_months(database, 120)

    async with Database(database_url) as reader:
        await reader.run("reading for long", read)
    await ledger.apply([started(ref("new"), at=now)], NAME_A)
    assert (await keep_months(database, 120)).dropped != ()


async def test_each_month_goes_by_itself_and_nobody_is_locked_out_while_the_next_one_is_looked_through(
    ledger: PostgresAgentLedger, database: Database, database_url: str
) -> None:
    """The younger of two old months has an operation under way whose row somebody holds on to."""
    now = datetime.now(UTC).timestamp()
    await ledger.apply([started(ref("gone"), at=now), finished(ref("gone"), at=now)], NAME_A)
    await age(database, 350)
    await ledger.apply([started(ref("open"), at=now)], NAME_A)
    await age(database, 150, "uid = 'open'")
    oldest = (datetime.now(UTC) - timedelta(days=350)).date().replace(day=1)
    younger = (datetime.now(UTC) - timedelta(days=150)).date().replace(day=1)
    with psycopg.connect(database_url) as holder, psycopg.connect(database_url, autocommit=True) as onlooker:
        holder.execute(f"SELECT FROM operations_{younger:%Y_%m} WHERE uid = 'open' FOR UPDATE".encode())
        keeping = asyncio.create_task(keep_months(database, 90))
        async with asyncio.timeout(30):
            while onlooker.execute(WAITING).fetchone() is None:
                await ledger.apply([started(ref("busy"), at=now)], NAME_A)
        months = [row[0] for row in onlooker.execute("SELECT month FROM operation_months ORDER BY month")]
        assert oldest not in months, "it is dropped for good already"
        assert younger in months
        assert onlooker.execute("SELECT FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND relation IN"
                                " ('operations'::regclass, 'health_events'::regclass)").fetchone() is None  # fmt: skip
        await ledger.apply([started(ref("new"), at=now), finished(ref("new"), at=now)], NAME_A)
        holder.rollback()
        assert younger in (await keeping).dropped
    assert {row.uid for row in await read_history(database_url, QUERY)} == {"open", "busy", "new"}


async def test_what_begins_to_count_between_the_move_and_the_drop_keeps_its_month(
    ledger: PostgresAgentLedger, database: Database
) -> None:
    now = datetime.now(UTC).timestamp()
    await ledger.apply([started(ref("old"), at=now), finished(ref("old"), at=now)], NAME_A)
    await age(database, 200)
    month = (datetime.now(UTC) - timedelta(days=200)).date().replace(day=1)
    drop = sql.SQL("SELECT drop_operation_month(%(month)s, interval '90 days') AS done")
    for unfit in (
        "finished_at = NULL",
        "finished_at = now() - interval '89 days'",
        "recorded_at = now() - interval '89 days'",
    ):
        await execute(database, f"CREATE TABLE kept AS SELECT * FROM operations; UPDATE operations SET {unfit}")
        assert await database.row("dropping", drop, {"month": month}) == {"done": False}
        await execute(
            database,
            "UPDATE operations SET recorded_at = kept.recorded_at, finished_at = kept.finished_at FROM kept;"
            " DROP TABLE kept",
        )
    assert await database.row("dropping", drop, {"month": month}) == {"done": True}
    assert await database.row("dropping", drop, {"month": month}) == {"done": False}


async def test_a_month_is_looked_through_by_its_indexes_alone(ledger: PostgresAgentLedger, database: Database) -> None:
    """However many rows it has, and although nobody ever told the planner of them."""
    await ledger.apply([started(ref("open"), at=datetime.now(UTC).timestamp())], NAME_A)
    await age(database, 200)
    await execute(
        database,
        """
        INSERT INTO operations (installation, id, uid, namespace_uid, kind, namespace, name, node_name, started_at,
                                finished_at, recorded_at, month)
        SELECT installation, n::text, uid, namespace_uid, kind, namespace, name, node_name, started_at,
               (month + interval '3 days') AT TIME ZONE 'UTC', recorded_at, month
          FROM operations, generate_series(1, 5000) AS n
        """,
    )
    month = (datetime.now(UTC) - timedelta(days=200)).date().replace(day=1)
    scans = sql.SQL(f"SELECT pg_stat_get_xact_numscans('operations_{month:%Y_%m}'::regclass) AS n")
    move = sql.SQL("SELECT move_operations_on(%(month)s, '90 days') AS n")

    async def look(connection: Connection) -> None:
        async with connection.transaction():
            before = await (await connection.execute(scans)).fetchone()
            assert await (await connection.execute(move, {"month": month})).fetchone() == {"n": 1}
            assert await (await connection.execute(scans)).fetchone() == before, (
                "it was found without a sequential scan"
            )

    await database.run("moving on", look)
    assert month in (await keep_months(database, 90)).dropped


async def test_health_events_go_by_the_same_months(ledger: PostgresAgentLedger, database: Database) -> None:
    now = datetime.now(UTC).timestamp()
    await ledger.apply([HealthRow("old", ref(), HealthKind.EXITED, now)], NAME_A)
    await execute(
        database,
        """
        SELECT make_health_months((now() - interval '200 days')::date, now()::date);
        UPDATE health_events
           SET recorded_at = recorded_at - interval '200 days', happened_at = happened_at - interval '200 days',
               month = date_trunc('month', (now() - interval '200 days') AT TIME ZONE 'UTC')
        """,
    )
    await ledger.apply([HealthRow("young", ref(), HealthKind.EXITED, now)], NAME_A)
    ids = sql.SQL("SELECT id FROM health_events ORDER BY id")
    await keep_months(database, 250)
    assert [row["id"] for row in await database.rows("reading", ids, {})] == ["old", "young"]
    dropped = (await keep_months(database, 120)).dropped
    assert (datetime.now(UTC) - timedelta(days=200)).date().replace(day=1) in dropped
    assert [row["id"] for row in await database.rows("reading", ids, {})] == ["young"]
    assert (await keep_months(database, 120)).dropped == ()


async def test_agents_of_a_ledger_that_is_brought_up_to_date_may_tell_of_health(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = f"agents_{uuid.uuid4().hex[:8]}"
    every = known_migrations()
    async with Database(database_url) as database:
        monkeypatch.setattr(migrate_module, "known_migrations", lambda: every[:4])
        await migrate(database)
        await execute(database, f"CREATE ROLE {role} LOGIN; GRANT SELECT, INSERT, UPDATE ON operations TO {role}")
        monkeypatch.setattr(migrate_module, "known_migrations", lambda: every)
        await migrate(database)
        try:
            rights = sql.SQL(
                "SELECT string_agg(privilege_type, ',' ORDER BY privilege_type) AS them FROM pg_class,"
                " aclexplode(relacl) WHERE oid = 'health_events'::regclass AND grantee = %(role)s::regrole"
            )
            assert await database.row("reading", rights, {"role": role}) == {"them": "INSERT,SELECT"}
        finally:
            await execute(database, f"DROP OWNED BY {role}; DROP ROLE {role}")


# ---------------------------------------------------------------------------------------------- from before


async def test_what_was_recorded_before_there_were_months_is_kept_with_its_rights(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    role = f"agents_{uuid.uuid4().hex[:8]}"
    every = known_migrations()
    async with Database(database_url) as database:
        monkeypatch.setattr(migrate_module, "known_migrations", lambda: every[:2])
        await migrate(database)
        await execute(
            database,
            f"""
            CREATE ROLE {role} LOGIN;
            GRANT SELECT, INSERT, UPDATE ON operations TO {role};
            INSERT INTO operations (installation, id, uid, namespace_uid, kind, namespace, name, node_name, op, started_at,
                                    recorded_at)
            SELECT 'cluster', 'uid-' || n || '/1', 'uid-' || n, 'ns-1', 'BotRuntime', 'team-a', 'bot', 'a', 'start',
                   at, at
              FROM generate_series(0, 11) AS n, LATERAL (SELECT now() - n * interval '20 days') AS moment (at)
            """,
        )
        listed = sql.SQL("SELECT id FROM operations ORDER BY started_at DESC")
        before = [row["id"] for row in await database.rows("reading", listed, {})]
        monkeypatch.setattr(migrate_module, "known_migrations", lambda: every)
        await migrate(database)
        try:
            assert [row.id for row in await read_history(database_url, QUERY)] == before
            months = await database.rows("reading", sql.SQL("SELECT DISTINCT month FROM operations"), {})
            assert len(months) >= 8
            rights = sql.SQL(
                "SELECT string_agg(privilege_type, ',' ORDER BY privilege_type) AS them FROM pg_class,"
                " aclexplode(relacl) WHERE oid = 'operations'::regclass AND grantee = %(role)s::regrole"
            )
            assert await database.row("reading", rights, {"role": role}) == {"them": "INSERT,SELECT,UPDATE"}
            ledger = PostgresAgentLedger(database, InstallationId("cluster"), NODE_A)
            await ledger.apply([finished(ref("uid-11"), at=datetime.now(UTC).timestamp())], NAME_A)
            rows = await read_history(database_url, QUERY)
            assert [row.outcome for row in rows if row.uid == "uid-11"] == ["success"], "an old intent is completed"
        finally:
            await execute(database, f"DROP OWNED BY {role}; DROP ROLE {role}")
