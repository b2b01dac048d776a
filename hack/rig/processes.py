"""Daemons that outlive the command that started them, and are found again by pid, start time and boot.

A pid alone may by now belong to a stranger; pid + start time + boot id cannot (proc_pid_stat(5), field 22).
Called by the parts of an environment (etcd, containerd, …) and by tests that kill and restart those parts.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

POLL_SECONDS = 0.02


class DaemonError(RuntimeError):
    """A daemon did not become ready or did not end; the message names it and shows the end of its log."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process, told apart from every other process that ever has its pid."""

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> "ProcessIdentity | None":
        """The identity of the live process ``pid``; None where there is none, or only a zombie."""
        found = _state_and_start(pid)
        if found is None or found[0] in "ZX":
            return None
        return cls(pid, found[1], boot_id())

    def is_alive(self) -> bool:
        """True while exactly this process runs. Reaps it where it is a dead child of ours."""
        found = _state_and_start(self.pid)
        if found is None or found[1] != self.start_ticks or self.boot_id != boot_id():
            return False
        if found[0] == "Z":
            _reap(self.pid)
        return found[0] not in "ZX"

    def send(self, number: signal.Signals) -> None:
        """Signal this process; a no-op once it has ended or its pid went to another one."""
        if self.is_alive():
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return


def boot_id() -> str:
    """The kernel's random id of this boot (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def wait_until(
    condition: Callable[[], bool], what: str, *, seconds: float, give_up: Callable[[], str | None] = lambda: None
) -> None:
    """Poll ``condition`` until it holds.

    ``give_up`` may return a reason to stop early. Raises DaemonError on that reason, or after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        reason = give_up()
        if reason is not None:
            raise DaemonError(f"{what}: {reason}")
        if time.monotonic() > deadline:
            raise DaemonError(f"{what}: not so after {seconds:.0f} s")
        time.sleep(POLL_SECONDS)


@dataclass(frozen=True, slots=True)
class Daemon:
    """One supervised program: how to start it, where its log is, and how it is found again.

    ``ready`` answers whether it serves; it must not raise. ``run_directory`` holds the pid file and the log.
    """

    name: str
    argv: Sequence[str]
    run_directory: Path
    ready: Callable[[], bool]
    env: Mapping[str, str] = field(default_factory=dict)
    ready_seconds: float = 180.0
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = 20.0

    @property
    def log(self) -> Path:
        """Where stdout and stderr go; begun anew at each start."""
        return self.run_directory / f"{self.name}.log"

    @property
    def pid_file(self) -> Path:
        """JSON of the ProcessIdentity that was started last."""
        return _pid_file(self.run_directory, self.name)

    def identity(self) -> ProcessIdentity | None:
        """The process of this daemon if it runs now."""
        return recorded(self.run_directory, self.name)

    def start(self) -> bool:
        """Start unless it runs already. Returns True if a new process was made. Does not wait for readiness."""
        if self.identity() is not None:
            return False
        self.run_directory.mkdir(parents=True, exist_ok=True)
        pid = os.posix_spawnp(
            self.argv[0],
            list(self.argv),
            {**os.environ, **self.env},
            setsid=True,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self.log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
        )
        identity = ProcessIdentity.of(pid)
        if identity is None:
            raise DaemonError(f"{self.name} ended at once.\n{self.log_tail()}")
        temporary = self.pid_file.with_suffix(".pid.new")
        temporary.write_text(json.dumps(asdict(identity)))
        temporary.rename(self.pid_file)
        return True

    def wait_ready(self) -> None:
        """Wait until it serves. Raises DaemonError with the end of its log when it dies or takes too long."""
        try:
            wait_until(
                self.ready,
                f"waiting for {self.name} to become ready",
                seconds=self.ready_seconds,
                give_up=lambda: None if self.identity() else "its process has ended",
            )
        except DaemonError as error:
            raise DaemonError(f"{error}\n{self.log_tail()}") from error

    def stop(self) -> None:
        """Ask it to end, then kill it; returns once it is gone. A no-op where it does not run."""
        identity = self.identity()
        if identity is not None:
            end(identity, self.name, ask_with=self.stop_signal, seconds=self.stop_seconds)
        self.pid_file.unlink(missing_ok=True)

    def kill(self) -> None:
        """SIGKILL it and wait until it is gone, as a crash would. A no-op where it does not run."""
        identity = self.identity()
        if identity is not None:
            end(identity, self.name, ask_with=signal.SIGKILL, seconds=self.stop_seconds)

    def log_tail(self, lines: int = 25) -> str:
        """The last lines of the log, for error messages."""
        if not self.log.exists():
            return f"(no log at {self.log})"
        text = self.log.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join([f"--- end of {self.log}", *text])


def recorded(run_directory: Path, name: str) -> ProcessIdentity | None:
    """The live process that the pid file of daemon ``name`` tells of, or None."""
    try:
        content = json.loads(_pid_file(run_directory, name).read_text())
    except (FileNotFoundError, ValueError):
        return None
    found = ProcessIdentity(int(content["pid"]), int(content["start_ticks"]), str(content["boot_id"]))
    return found if found.is_alive() else None


def end(
    identity: ProcessIdentity, name: str, *, ask_with: signal.Signals = signal.SIGTERM, seconds: float = 20.0
) -> None:
    """Signal a process, SIGKILL it after ``seconds``, and return once it is gone.

    Raises DaemonError if it outlives even SIGKILL by ten seconds (a process stuck in the kernel).
    """
    identity.send(ask_with)
    try:
        wait_until(lambda: not identity.is_alive(), f"waiting for {name} to end", seconds=seconds)
    except DaemonError:
        identity.send(signal.SIGKILL)
        wait_until(lambda: not identity.is_alive(), f"waiting for {name} to end after SIGKILL", seconds=10.0)


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A live process and the argv that it shows."""

    process: ProcessIdentity
    argv: tuple[str, ...]

    def environment(self) -> dict[str, str]:
        """The variables that the process was started with; empty once it has ended."""
        try:
            content = Path(f"/proc/{self.process.pid}/environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            return {}
        pairs = (part.partition("=") for part in content.decode(errors="replace").split("\0"))
        return {name: value for name, _, value in pairs}


def command_lines() -> list[CommandLine]:
    """Every live process of the machine that shows an argv."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                argv = (entry / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            process = ProcessIdentity.of(int(entry.name))
            if argv[0] and process is not None:
                found.append(CommandLine(process, tuple(argv)))
    return found


def _pid_file(run_directory: Path, name: str) -> Path:
    return run_directory / f"{name}.pid"


def _state_and_start(pid: int) -> tuple[str, int] | None:
    """State letter and start time in clock ticks since boot of ``pid``; None where there is no such process.

    Killed, a process's first thread is a zombie before its others are gone, which still hold its files and ports: it
    counts as running (``R``) until it is alone.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    threads = int(fields[17])
    state = "R" if fields[0] == "Z" and threads > 1 else fields[0]
    return state, int(fields[19])


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
