"""Commands beside a container's main process: run for a bounded time, heard for a bounded length, and cleared away.

Called by the engine for `execute` of the port. Every command has a FIFO of its id in the state folder from before the
engine hears of it until it is deleted: what a killed agent left behind is found by these. The next one opens them at
once, because a shim that starts a command waits up to 30 s for a reader of its output and answers nothing meanwhile
(runtime/v2/runc and pkg/process in containerd 1.6); it ends what is left when it runs its first command.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import uuid
from collections.abc import Coroutine, Iterable, Sequence, Set
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import msgspec.structs
import structlog

from perdure.api.conditions import Reason
from perdure.api.names import ContainerId
from perdure.engine.containerd import oom
from perdure.engine.containerd.containers import Containers
from perdure.engine.containerd.errors import FailedPrecondition, NotFound, RpcFailed, RpcTimeout, start_refusal
from perdure.engine.containerd.messages import ContainerRecord, ProcessStatus
from perdure.engine.containerd.services import Services
from perdure.engine.containerd.settings import ContainerdSettings
from perdure.engine.descendants import kill_with_descendants
from perdure.engine.fifo import Fifo, open_fifo
from perdure.engine.oci import schema
from perdure.reconcile.ports.engine import Execution
from perdure.reconcile.ports.errors import EngineRefused, EngineUnavailable

MARK = "PERDURE_PROBE"
"""Environment variable with the command's id: its children have it, too, and are known by it. It comes first, so that it is
found in the first piece of an environment that nobody has rearranged."""
NOT_STARTED = 126
KILL_SECONDS = 5.0
"""How long a command may take to be gone after SIGKILL."""
LINGER_SECONDS = 0.5
"""How long the last of its output is waited for."""
KEPT_BYTES = 4096
SHORTEST_SECRET = 4
"""A shorter value is not taken out of the output: too much else would go with it."""

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class _Spec(msgspec.Struct):
    """The part of a container's stored spec that its commands share."""

    process: schema.Process


class Execs:
    def __init__(
        self, services: Services, settings: ContainerdSettings, containers: Containers, *, cgroup2: bool
    ) -> None:
        self._tasks = services.tasks
        self._settings = settings
        self._containers = containers
        self._cgroup2 = cgroup2
        self._folder = settings.state_dir / "execs"
        self._leftovers = _opened(self._folder)
        """Outputs, held open, of commands that must be ended: before the next one in their container."""
        self._swept = False
        self._under_way: set[asyncio.Task[object]] = set()

    async def close(self) -> None:
        """What is under way is left to the next process."""
        for descriptor in self._leftovers.values():
            os.close(descriptor)
        self._leftovers.clear()
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def run(self, container: ContainerId, command: Sequence[str], seconds: float, secrets: Set[str]) -> Execution:
        """See the port. A caller that is cancelled leaves it running to its own end, which is bounded."""
        if not self._swept:
            self._swept = True
            self._keep(self._sweep(tuple(self._leftovers)))
        await self._sweep(tuple(path for path in self._leftovers if path.parent.name == container))
        record = await self._containers.find(container)
        if record is None:
            raise EngineRefused(f"cannot run a command in {container}: it is not there", reason=Reason.INTERNAL_ERROR)
        return await asyncio.shield(self._keep(self._run(record, tuple(command), seconds, secrets)))

    def _keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[Any]) -> None:
        """Whoever waited has the error, too; nobody may wait any more."""
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.debug("command_not_run_to_its_end", error=str(error))

    # ------------------------------------------------------------------------------------------ one command

    async def _run(
        self, record: ContainerRecord, command: tuple[str, ...], seconds: float, secrets: Set[str]
    ) -> Execution:
        container, exec_id = ContainerId(record.id), f"probe-{uuid.uuid4().hex}"
        process = msgspec.json.decode(record.spec, type=_Spec).process
        hidden = _values(process.env, secrets)
        marked = msgspec.structs.replace(process, args=command, env=(f"{MARK}={exec_id}", *process.env))
        output = Fifo(self._folder / container / exec_id, KEPT_BYTES + max(map(len, hidden), default=0))
        try:
            with output:
                code = await self._ended(container, exec_id, marked, seconds)
                # The engine passes the output on for as long as anybody holds it: the end of it comes with this.
                await asyncio.wait({self._keep(self._clear(container, exec_id))}, timeout=LINGER_SECONDS)
                return Execution(code, _text(output.heard(), output.truncated, hidden))
        except _NotStarted as error:
            await self._clear(container, exec_id)
            return Execution(NOT_STARTED, str(error))
        except RpcFailed:
            await self._clear(container, exec_id)
            raise
        except EngineUnavailable:
            self._leftovers[output.path] = open_fifo(output.path)
            raise
        except OSError as error:
            raise EngineRefused(
                f"cannot run a command in {container}: {error}; look at the state folder", reason=Reason.INTERNAL_ERROR
            ) from error

    async def _ended(self, container: ContainerId, exec_id: str, process: schema.Process, seconds: float) -> int | None:
        """The exit code; None: its time was up, and it was killed. Its time is counted from its start."""
        try:
            await self._tasks.exec(
                container, exec_id, msgspec.json.encode(process), str(self._path(container, exec_id))
            )
            pid = await self._tasks.start_exec(container, exec_id)
        except (NotFound, FailedPrecondition):
            raise
        except RpcFailed as error:
            if _is_about_the_container(error):
                raise
            told = str(start_refusal(error, process.args[0]))
            raise _NotStarted(told.removeprefix("cannot start the container: ").partition("; ")[0]) from error
        try:
            return await self._tasks.wait_exec(container, exec_id, seconds)
        except RpcTimeout:
            await self._kill(container, exec_id, pid)
            return None

    async def _kill(self, container: ContainerId, exec_id: str, pid: int) -> None:
        procs = oom.folder(f"{self._settings.cgroup_parent.rstrip('/')}/{container}", cgroup2=self._cgroup2)
        gone = await asyncio.to_thread(kill_with_descendants, procs / "cgroup.procs", pid, f"{MARK}={exec_id}")
        if not gone:
            _log.warning("command_does_not_die", container=container, exec=exec_id)
        try:
            await self._tasks.wait_exec(container, exec_id, KILL_SECONDS)
        except (RpcTimeout, NotFound) as error:
            _log.debug("command_not_awaited", container=container, exec=exec_id, error=str(error))

    async def _clear(self, container: ContainerId, exec_id: str) -> None:
        """Have the engine forget it; its name goes last, so that whoever comes after a kill finds it."""
        try:
            await self._tasks.delete_exec(container, exec_id)
        except NotFound as error:
            _log.debug("command_gone_already", container=container, exec=exec_id, error=str(error))
        except RpcFailed as error:
            # It goes with its container; its name stays, so that the next process tries again.
            _log.warning("command_not_cleared", container=container, exec=exec_id, error=str(error))
            return
        await asyncio.to_thread(self._forget, container, exec_id)

    def _path(self, container: str, exec_id: str) -> Path:
        return self._folder / container / exec_id

    def _forget(self, container: str, exec_id: str) -> None:
        path = self._path(container, exec_id)
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another command of the container is under way
            path.parent.rmdir()

    # ------------------------------------------------------------------------------------------ what was left behind

    async def _sweep(self, paths: Iterable[Path]) -> None:
        """End what an earlier process, or an earlier command while the engine was away, could not."""
        await asyncio.gather(*(self._end_leftover(path) for path in paths))

    async def _end_leftover(self, path: Path) -> None:
        """Raises `EngineUnavailable`: then it is tried again with the next command. May run twice at once."""
        container, exec_id = ContainerId(path.parent.name), path.name
        try:
            found = await self._tasks.get_exec(container, exec_id)
            _log.info("command_left_behind", container=container, exec=exec_id, state=found.status.name.lower())
            if found.status is ProcessStatus.RUNNING:
                await self._kill(container, exec_id, found.pid)
            await self._clear(container, exec_id)
        except NotFound:
            await asyncio.to_thread(self._forget, container, exec_id)
        except RpcFailed as error:
            # It goes with its container; the others are not to wait for it.
            _log.warning("command_left_behind_stays", container=container, exec=exec_id, error=str(error))
        descriptor = self._leftovers.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)


def _opened(folder: Path) -> dict[Path, int]:
    """The outputs of an earlier process's commands, opened. Blocking, and quick."""
    return {path: open_fifo(path) for path in sorted(folder.glob("*/probe-*"))}


class _NotStarted(Exception):
    """It could not be started, for a reason that lies in the container."""


def _is_about_the_container(error: RpcFailed) -> bool:
    """Whether it could not be started because the container does not run (texts of runc 1.1 and the shim)."""
    return re.search(r"stopped|not running|paused|does not exist", error.text) is not None


def _values(env: Sequence[str], names: Set[str]) -> tuple[str, ...]:
    """The longest first, so that one that is part of another leaves nothing of it."""
    pairs = (entry.partition("=") for entry in env)
    values = {value for name, _, value in pairs if name in names and len(value) >= SHORTEST_SECRET}
    return tuple(sorted(values, key=len, reverse=True))


def _text(data: bytes, truncated: bool, hidden: Sequence[str]) -> str:
    """What was printed, without the secrets; where it was cut off, so is what may be the beginning of one."""
    text = data.decode("utf-8", "replace")
    if truncated:
        text = text[: max(0, len(text) - max(map(len, hidden), default=0))]
    for value in hidden:
        text = text.replace(value, "***")
    return text.strip()
