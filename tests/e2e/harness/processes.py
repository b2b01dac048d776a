"""Perdure's own processes, as an administrator starts them: ready, killed, ended, and what they logged.

A process that a test started is ended by its fixture; when a test fails, the ends of all their logs are shown with it.
"""

import random
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rig.paths import CHECKOUT
from rig.ports import is_free
from rig.processes import Daemon, ProcessIdentity

READY_SECONDS = 180.0
FIRST_PORT, LAST_PORT = 32000, 32700
"""Outside of what environments choose from and of what Linux hands to outgoing connections."""
LOG_LINES = 120
STACKS_SECONDS = 2.0


@dataclass(slots=True)
class Operator:
    """One `perdure standalone`, `controller` or `agent` that can be killed and started again.

    Each start has a log of its own; `variables` are read at each start, so a test may change them in between.
    """

    role: str
    name: str
    directory: Path
    variables: dict[str, str]
    port: int = field(default_factory=lambda: free_port())
    starts: int = 0

    @property
    def _daemon(self) -> Daemon:
        command = [sys.executable, "-m", "perdure.cli.main", self.role]
        return Daemon(
            f"{self.role}-{self.name}-{self.starts}",
            command,
            self.directory,
            self.is_ready,
            env={
                **self.variables,
                "PERDURE_HTTP_ADDRESS": f"127.0.0.1:{self.port}",
                "PYTHONPATH": str(CHECKOUT / "controller"),
            },
            ready_seconds=READY_SECONDS,
        )

    def start(self, *, ready: bool = True) -> None:
        """Start a new process, and wait until it says that it is ready unless told not to."""
        assert self.identity() is None, f"{self.role} {self.name} runs already"
        self.starts += 1
        self._daemon.start()
        if ready:
            self.wait_ready()

    def supervise(self) -> None:
        """What a supervisor does: start it if it ended, and wait until it is ready."""
        if self.identity() is None:
            self.start()
        self.wait_ready()

    def wait_ready(self) -> None:
        self._daemon.wait_ready()

    def identity(self) -> ProcessIdentity | None:
        """The live process, if there is one."""
        return self._daemon.identity()

    def kill(self) -> None:
        """SIGKILL, as a crash would; returns once it is gone."""
        self._daemon.kill()

    def stop(self) -> None:
        """SIGTERM, as a supervisor does; a no-op where it does not run."""
        self._daemon.stop()

    def kill_after(self, seconds: float) -> None:
        """SIGKILL a given time from now: the instant is the experiment, so it is not waited for by condition."""
        time.sleep(seconds)
        self.kill()

    def is_ready(self) -> bool:
        return self.answer("readyz")[0] == 200

    def answer(self, path: str) -> tuple[int, str]:
        """Status and body of a health endpoint; (0, why) where nothing answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def log(self) -> str:
        """All that the newest process has logged so far."""
        return self._daemon.log.read_text(errors="replace")

    def explain(self) -> str:
        """What it says of itself, what its threads are at, and the ends of its newest logs: for a failed test."""
        process = self.identity()
        if process is None:
            return f"it does not run\n{self.log_tails()}"
        answers = [f"{path}: {self.answer(path)}" for path in ("livez", "readyz")]
        process.send(signal.SIGUSR1)
        deadline = time.monotonic() + STACKS_SECONDS
        while "most recent call first" not in self.log() and time.monotonic() < deadline:
            time.sleep(0.05)
        return "\n".join([*answers, self.log_tails()])

    def log_tails(self) -> str:
        logs = sorted(self.directory.glob(f"{self.role}-{self.name}-*.log"), key=lambda path: path.stat().st_mtime)
        parts = []
        for path in logs[-3:]:
            lines = path.read_text(errors="replace").splitlines()
            parts.append("\n".join([f"--- {path.name} ({len(lines)} lines)", *lines[-LOG_LINES:]]))
        return "\n".join(parts)


def free_port() -> int:
    """A TCP port on loopback that nobody listens on."""
    for port in random.sample(range(FIRST_PORT, LAST_PORT), 100):
        if is_free(port):
            return port
    raise RuntimeError(f"no free TCP port between {FIRST_PORT} and {LAST_PORT}")


def variables(kubeconfig: Path, database_url: str, options: Mapping[str, str] | None = None) -> dict[str, str]:
    """What every process is told, and the options of a site for those that have one."""
    return {
        "KUBECONFIG": str(kubeconfig),
        "PERDURE_DATABASE_URL": database_url,
        "PERDURE_LOG_LEVEL": "debug",
        "PERDURE_LOG_FORMAT": "json",
        **(options or {}),
    }
