"""Where a benchmark plays: an environment of its own that fsyncs, Perdure's real processes, and one runtime at a time.

Nothing is shared with another environment, and nothing is left when it closes. Called by ``hack/bench``.
"""

import asyncio
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rig.bench.cluster import NAMESPACE, BenchmarkError, Cluster, Json, open_cluster
from rig.bench.cpu import CpuAccounts
from rig.environment import ENGINE_NAMESPACE, Environment, RefusedError
from rig.images import REPOSITORY
from rig.paths import CHECKOUT, environment_id
from rig.probes import answers
from rig.processes import Daemon, ProcessIdentity
from rig.progress import run, say

IMAGE = f"{REPOSITORY}:1"
MEMORY_MIB = 64
SPEC: Json = {
    "image": IMAGE,
    "deletionPolicy": "Purge",
    "network": {"mode": "none"},
    "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "1", "memory": f"{MEMORY_MIB}Mi"}},
}
READY_LINE = b" ready\n"
"""How each line ends that the sample image prints once its signals are set up."""
POLL_SECONDS = 0.001
CONDITION_SECONDS = 60.0
TASKS = "io.containerd.runtime.v2.task"
"""containerd's folder of bundles; the shim writes ``init.pid`` into each (runtime/v2/runc, containerd 1.x and 2.x)."""


@dataclass(slots=True)
class Stage:
    """See `open_stage`."""

    environment: Environment
    cluster: Cluster
    accounts: CpuAccounts
    versions: str
    """Of the engine and of runc, for the notes."""
    processes: list[Daemon] = field(default_factory=list)
    """Perdure's, as far as they were started."""

    async def start_perdure(self, *roles: str, log_level: str = "info") -> None:
        """Start these processes (``standalone``, ``controller``, ``agent``) and wait until they are ready."""
        for role in roles:
            daemon = self._daemon(role, log_level)
            daemon.start()
            self.processes.append(daemon)
            self.accounts.admit("perdure", self.process_of(daemon))
        for daemon in self.processes:
            await asyncio.to_thread(daemon.wait_ready)

    async def stop_perdure(self) -> None:
        """End them as a supervisor does; containers go on running."""
        while self.processes:
            await asyncio.to_thread(self.processes.pop().stop)

    @staticmethod
    def process_of(daemon: Daemon) -> ProcessIdentity:
        """The live process of a daemon. Raises BenchmarkError with the end of its log."""
        found = daemon.identity()
        if found is None:
            raise BenchmarkError(f"{daemon.name} has ended\n{daemon.log_tail()}")
        return found

    def _daemon(self, role: str, log_level: str) -> Daemon:
        environment = self.environment
        address = f"127.0.0.1:{free_ports(1)[0]}"
        options = {
            "PERDURE_HTTP_ADDRESS": address,
            "PERDURE_RUN_DIR": str(environment.run_directory / "perdure"),
            "PERDURE_NODE_NAME": "bench",
            "PERDURE_ALLOCATABLE_CPU": "1000",
            "PERDURE_ALLOCATABLE_MEMORY": "1Ti",
            "PERDURE_LOG_LEVEL": log_level,
            "PERDURE_LOG_FORMAT": "json",
            "PYTHONPATH": str(CHECKOUT / "controller"),
        }
        return Daemon(
            f"perdure-{role}",
            [sys.executable, "-m", "perdure.cli.main", role],
            environment.run_directory,
            lambda: answers(f"http://{address}/readyz"),
            env={**environment.variables(), **options},
        )


@dataclass(slots=True)
class Subject:
    """One BotRuntime in one life."""

    stage: Stage
    name: str
    uid: str
    began: float
    """Just before the POST was sent (time.perf_counter)."""
    posted: float
    """When the POST was answered."""

    @classmethod
    async def create(cls, stage: Stage, **spec: object) -> "Subject":
        """POST it under a name that was never used."""
        name = f"b-{uuid.uuid4().hex[:12]}"
        began = time.perf_counter()
        made = await stage.cluster.create(name, {**SPEC, **spec})
        return cls(stage, name, made["metadata"]["uid"], began, time.perf_counter())

    @property
    def log(self) -> Path:
        """What its container prints."""
        return self.stage.environment.state_directory / "logs" / f"{NAMESPACE}_{self.name}_{self.uid}" / "1.log"

    @property
    def pid(self) -> int:
        """Its main process. Raises FileNotFoundError while it has none."""
        bundle = self.stage.environment.engine.state / TASKS / ENGINE_NAMESPACE / f"br-{self.uid}"
        return int((bundle / "init.pid").read_text())

    async def ready(self, since: float, restarts: int = 0) -> float:
        """When the watch told that it is Ready, after at least so many restarts."""
        seen = await self.stage.cluster.seen(
            self.name, lambda seen: seen.is_ready(restarts), f"Ready after {restarts} restarts", since=since
        )
        return seen.at

    async def phase(self, phase: str, since: float) -> float:
        """When the watch told this phase."""
        return (await self.stage.cluster.seen(self.name, lambda seen: seen.is_phase(phase), phase, since=since)).at

    async def spoke(self, times: int = 1) -> float:
        """When its main process had said for the so-manieth time that it is ready."""
        return await spoke(self.log, times)

    def kill(self) -> float:
        """SIGKILL its main process; when that was."""
        began = time.perf_counter()
        os.kill(self.pid, signal.SIGKILL)
        return began

    async def delete(self) -> float:
        """DELETE it and wait until it is gone; seconds that took."""
        began = time.perf_counter()
        await self.stage.cluster.delete(self.name)
        gone = await self.stage.cluster.seen(self.name, lambda seen: seen.type == "DELETED", "gone", since=began)
        self.stage.cluster.forget(self.name)
        return gone.at - began


async def eventually(condition: Callable[[], bool], what: str, seconds: float = CONDITION_SECONDS) -> float:
    """When a condition that nobody tells of held, to a millisecond. Raises BenchmarkError after ``seconds``."""
    deadline = time.perf_counter() + seconds
    while not condition():
        if time.perf_counter() > deadline:
            raise BenchmarkError(f"{what}: not so after {seconds:.0f} s")
        await asyncio.sleep(POLL_SECONDS)
    return time.perf_counter()


async def spoke(log: Path, times: int = 1) -> float:
    """When the program that prints into ``log`` had said for the so-manieth time that it is ready."""

    def said() -> bool:
        try:
            return log.read_bytes().count(READY_LINE) >= times
        except FileNotFoundError:
            return False

    return await eventually(said, f"{log} has its line {times}")


@asynccontextmanager
async def open_stage(directory: Path | None, *, pods: bool = False) -> AsyncIterator[Stage]:
    """Set up an environment in ``directory`` (empty or new; default: a temporary one); remove everything at the end.

    ``pods``: its engine serves a kubelet besides.
    Raises RefusedError for a folder that holds something, and what `Environment.up` raises.
    """
    home = _home(directory)
    environment = Environment(home, durable=True, pods=pods)
    accounts = CpuAccounts(f"/perdure-bench-{environment_id(home)}", environment.cgroup_parent)
    try:
        await asyncio.to_thread(environment.up)
        plane = environment.control_plane
        parts = {"kube-apiserver": plane.apiserver, "etcd": plane.etcd, "engine": environment.engine.daemon}
        for part, daemon in (*parts.items(), ("postgres", environment.database.daemon)):
            accounts.admit(part, Stage.process_of(daemon))
        async with open_cluster(plane) as cluster:
            stage = Stage(environment, cluster, accounts, _versions(environment))
            try:
                yield stage
            finally:
                await stage.stop_perdure()
    finally:
        say("==> removing the environment")
        await asyncio.to_thread(environment.down)
        accounts.close()
        shutil.rmtree(home, ignore_errors=True)


def _home(directory: Path | None) -> Path:
    if directory is None:
        return Path(tempfile.mkdtemp(prefix="perdure-bench-", dir="/var/tmp"))
    if directory.exists() and any(directory.iterdir()):
        raise RefusedError(f"{directory} holds something; name an empty or new folder: it is removed afterwards")
    return directory


def _versions(environment: Environment) -> str:
    engine = run([environment.engine.program("containerd"), "--version"], timeout=20).split()[2]
    runtime = run(["runc", "--version"], timeout=20).split()[2]
    return f"containerd {engine}, runc {runtime}"


def free_ports(count: int) -> tuple[int, ...]:
    """Different numbers that nobody listens on, of TCP."""
    with ExitStack() as probes:
        found = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in found:
            probe.bind(("127.0.0.1", 0))
        return tuple(probe.getsockname()[1] for probe in found)
