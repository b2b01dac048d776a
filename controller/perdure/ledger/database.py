"""The way to PostgreSQL that the ledgers share: a small pool, deadlines, and errors that say what was being done.

Every statement of this package may be repeated, so a connection that turns out to be dead (the server was restarted, a
backend was killed) costs one repetition and no error. No error or log line holds the connection string: it may have a
password in it.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from perdure.ledger.text import StorableText
from perdure.reconcile.ports.errors import LedgerUnavailable, PortError

T = TypeVar("T")
Connection = AsyncConnection[DictRow]

OLDEST_SERVER = 140000
"""PostgreSQL 14, as `server_version` counts."""
_POOL_RETRY_SECONDS = 3.0
_PARAMETERS_NOT_OURS = frozenset({"password", "passfile", "sslpassword"})


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    connections: int = 4
    """At most this many at once; one is kept open. A node's agent needs two or three even under load."""
    connect_seconds: float = 5.0
    """How long a caller waits for a connection, a new one included."""
    statement_seconds: float = 5.0
    """After this the server itself ends a statement (`statement_timeout`)."""
    deadline_seconds: float = 12.0
    """After this a caller gets `LedgerUnavailable` although nothing was heard: a paused server, a network that drops."""


class Database:
    """A pool on one database; `async with`, or `open` and `close`. Opening never fails: the first call does."""

    def __init__(
        self,
        url: str,
        settings: DatabaseSettings | None = None,
        admit: Callable[[Connection], Awaitable[None]] | None = None,
    ) -> None:
        """`url`: a libpq URL or `key=value` string. Raises `LedgerUnavailable` when it is neither.

        `admit` is asked of each new connection, before anything else is said on it, and raises a `PortError` for a ledger
        that is not to be used.
        """
        check_url(url)
        self._admit = admit
        self.settings = settings or DatabaseSettings()
        self._last_refusal = ""
        self._not_admitted = ""
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            url,
            connection_class=self._connection_class(),
            kwargs={
                "autocommit": True,
                "row_factory": dict_row,
                "application_name": "perdure",
                "client_encoding": "utf8",
                "connect_timeout": max(2, round(self.settings.connect_seconds)),
            },
            configure=self._configure,
            min_size=1,
            max_size=self.settings.connections,
            timeout=self.settings.connect_seconds,
            reconnect_timeout=_POOL_RETRY_SECONDS,
            open=False,
            name="ledger",
        )

    async def open(self) -> None:
        await self._pool.open(wait=False)

    async def close(self) -> None:
        await self._pool.close(timeout=self.settings.connect_seconds)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def run(
        self, doing: str, work: Callable[[Connection], Awaitable[T]], deadline_seconds: float | None = None
    ) -> T:
        """Run `work` on a connection; again if that connection was dead. `work` must be repeatable.

        `deadline_seconds`: for work that is known to take longer than the settings allow; such work sets a
        `statement_timeout` of its own, too. Raises `LedgerUnavailable` ("`doing`: why") for whatever PostgreSQL, the
        network or the deadline says.
        """
        seconds = self.settings.deadline_seconds if deadline_seconds is None else deadline_seconds
        deadline = asyncio.get_running_loop().time() + seconds
        with self._explained(doing, seconds):
            # After a restart of the server all of the pool's connections may be dead; each one is found out by use.
            for _ in range(self.settings.connections):
                try:
                    return await self._once(work, deadline)
                except psycopg.OperationalError as error:
                    if not _lost_connection(error):
                        raise
            return await self._once(work, deadline)

    async def _once(self, work: Callable[[Connection], Awaitable[T]], deadline: float) -> T:
        async with self._pool.connection() as connection:
            with _cut_off(connection, deadline):
                return await work(connection)

    async def row(self, doing: str, statement: sql.SQL, parameters: Mapping[str, object]) -> DictRow | None:
        """The one row of one statement, if there is one. Raises as `run`."""

        async def ask(connection: Connection) -> DictRow | None:
            return await (await connection.execute(statement, parameters)).fetchone()

        return await self.run(doing, ask)

    async def rows(self, doing: str, statement: sql.SQL, parameters: Mapping[str, object]) -> list[DictRow]:
        """All rows of one statement. Raises as `run`."""

        async def ask(connection: Connection) -> list[DictRow]:
            return await (await connection.execute(statement, parameters)).fetchall()

        return await self.run(doing, ask)

    async def write(self, doing: str, statement: sql.SQL, parameters: Mapping[str, object]) -> None:
        """One statement whose answer nobody needs. Raises as `run`."""

        async def execute(connection: Connection) -> None:
            await connection.execute(statement, parameters)

        await self.run(doing, execute)

    async def _configure(self, connection: Connection) -> None:
        if connection.info.server_version < OLDEST_SERVER:
            self._last_refusal = f"the server is PostgreSQL {connection.info.server_version // 10000}, 14 is the oldest"
            raise psycopg.NotSupportedError(self._last_refusal)
        connection.adapters.register_dumper(str, StorableText)
        milliseconds = round(self.settings.statement_seconds * 1000)
        await connection.execute(sql.SQL("SET statement_timeout = {}").format(milliseconds))
        # A machine that is lost in the middle of a transaction must not hold its locks until TCP notices.
        idle = round(self.settings.deadline_seconds * 1000)
        await connection.execute(sql.SQL("SET idle_in_transaction_session_timeout = {}").format(idle))
        if self._admit is not None:
            try:
                with self._explained("looking at the ledger of a new connection", self.settings.deadline_seconds):
                    await self._admit(connection)
            except PortError as error:
                self._not_admitted = str(error)
                raise psycopg.NotSupportedError(self._not_admitted) from error
            self._not_admitted = ""

    def _connection_class(self) -> type[Connection]:
        """The pool tells its callers only that there is no connection: this remembers why."""
        database = self

        class Remembering(AsyncConnection[DictRow]):
            @classmethod
            async def connect(cls, conninfo: str = "", **parameters: Any) -> Self:
                try:
                    connection = await super().connect(conninfo, **parameters)
                except (psycopg.Error, OSError) as error:
                    database._last_refusal = _first_line(error)
                    raise
                database._last_refusal = ""
                return connection

        return Remembering

    @contextmanager
    def _explained(self, doing: str, seconds: float) -> Iterator[None]:
        try:
            yield
        except (PoolTimeout, PoolClosed) as error:
            if self._not_admitted:
                raise LedgerUnavailable(f"{doing}: {self._not_admitted}") from error
            why = self._last_refusal or self._used_up() or _first_line(error)
            raise LedgerUnavailable(f"{doing}: no connection to PostgreSQL: {why}{_advice(why)}") from error
        except psycopg.errors.InsufficientPrivilege as error:
            raise LedgerUnavailable(
                f"{doing}: {_first_line(error)}; grant the role of the database URL the rights it lacks, or use the "
                "role that owns the ledger"
            ) from error
        except psycopg.errors.UndefinedTable as error:
            raise LedgerUnavailable(
                f"{doing}: {_first_line(error)}; the database has no ledger yet (start the controller of this version first, "
                "it makes it), or the database URL names another one"
            ) from error
        except TimeoutError as error:
            raise LedgerUnavailable(f"{doing}: PostgreSQL did not answer within {seconds:g} s") from error
        except (psycopg.Error, OSError) as error:
            raise LedgerUnavailable(f"{doing}: {_first_line(error)}") from error

    def _used_up(self) -> str:
        """Said where the server refused nothing: who asks for more than a process has waits for its own others."""
        pool = self._pool.get_stats()
        if pool.get("pool_size", 0) < self.settings.connections or pool.get("pool_available", 0):
            return ""
        return (
            f"all {self.settings.connections} connections of this process are in use, and none was given back in time"
        )


def _advice(refusal: str) -> str:
    """What to look at where a connection was refused for good; nothing for what may pass."""
    if "SSL" in refusal or "certificate" in refusal:
        return "; see sslmode, sslrootcert and sslcert in the database URL, and whether the server has TLS"
    if "authentication failed" in refusal or "no password supplied" in refusal or "pg_hba.conf" in refusal:
        return "; check user and password in the database URL, and the server's pg_hba.conf"
    if "does not exist" in refusal:
        return "; check user and database in the database URL"
    return ""


def refuses_data(error: LedgerUnavailable) -> bool:
    """Whether the server answered that it never takes what a statement says: the data, not the server, is at fault.

    SQLSTATE classes 22 (data exception) and 23 (integrity constraint violation), and 54000, which is said of a value that
    is too large for an index: https://www.postgresql.org/docs/current/errcodes-appendix.html
    """
    cause = error.__cause__
    return isinstance(cause, psycopg.DataError | psycopg.IntegrityError) or (
        isinstance(cause, psycopg.errors.ProgramLimitExceeded) and cause.sqlstate == "54000"
    )


def check_url(url: str) -> None:
    """Raises `LedgerUnavailable`, without the text of `url` in it, when libpq cannot read it."""
    try:
        parameters = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise LedgerUnavailable(
            "reading the database URL: it is neither postgresql://user:password@host:port/database nor a libpq "
            "key=value string (it is not shown here, for it may hold a password)"
        ) from None
    if not url.strip() or not set(parameters) - _PARAMETERS_NOT_OURS:
        raise LedgerUnavailable("reading the database URL: it is empty; give --database-url or PERDURE_DATABASE_URL")


@contextmanager
def _cut_off(connection: Connection, deadline: float) -> Iterator[None]:
    """Shut the connection's socket at `deadline` (the loop's time); what was being done then raises `TimeoutError`.

    A cancellation would not do: psycopg answers it by asking the server to cancel, and waits for that answer.
    """
    expired = False

    def cut() -> None:
        nonlocal expired
        expired = True
        if not connection.closed:
            with socket.socket(fileno=os.dup(connection.fileno())) as duplicate, suppress(OSError):  # already cut
                duplicate.shutdown(socket.SHUT_RDWR)

    timer = asyncio.get_running_loop().call_at(deadline, cut)
    try:
        yield
    except psycopg.Error as error:
        if expired:
            raise TimeoutError from error
        raise
    finally:
        timer.cancel()


def _lost_connection(error: psycopg.OperationalError) -> bool:
    """The connection broke, rather than the statement: class 08 and 57P0x of the SQLSTATEs, or none at all."""
    if isinstance(error, PoolTimeout | PoolClosed):
        return False
    state = error.sqlstate
    return state is None or state.startswith("08") or state in {"57P01", "57P02", "57P03"}


def _first_line(error: BaseException) -> str:
    """The server's own words, without its hints of where in the statement they apply."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
