"""Tasks: started on a snapshot that nobody else writes to, signalled, awaited, deleted.

The single writer is kept here: containerd starts a second task on an active snapshot without complaint. One agent per
engine namespace (its flock) and one step at a time per runtime make look-then-start safe among our own.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import signal as signals
from pathlib import Path

import msgspec
import structlog

from perdure.api import names
from perdure.api.conditions import Reason
from perdure.api.names import ContainerId, RuntimeRef, SnapshotKey
from perdure.engine.containerd.containers import Containers
from perdure.engine.containerd.errors import AlreadyExists, NotFound, RpcFailed, RpcTimeout, start_refusal
from perdure.engine.containerd.labels import reference, snapshot_facts
from perdure.engine.containerd.messages import ContainerRecord, Process, ProcessStatus
from perdure.engine.containerd.observation import Observer, OomMemory
from perdure.engine.containerd.services import Services
from perdure.engine.containerd.settings import ContainerdSettings
from perdure.engine.containerd.workspaces import Workspaces
from perdure.plan.certainty import Present
from perdure.plan.world import TaskFacts, TaskState
from perdure.reconcile.ports.engine import BeforeStart
from perdure.reconcile.ports.errors import EngineRefused, EngineUnavailable, PortError

_log = structlog.get_logger(__name__)

KILL_SECONDS = 10.0
"""How long a task that never ran may take to die when it is cleared away."""
_REALTIME = re.compile(r"(?:SIG)?RTM(IN|AX)([+-][0-9]+)?")


class _Arguments(msgspec.Struct):
    args: tuple[str, ...]


class _Command(msgspec.Struct):
    """The one part of a stored spec that is read back: for messages."""

    process: _Arguments


def signal_number(name: str) -> int:
    """`SIGTERM`, `TERM`, `15` or `SIGRTMIN+3` as a number. Raises `EngineRefused(InvalidSpec)`."""
    text = name.strip().upper()
    realtime = _REALTIME.fullmatch(text)
    number = 0
    if text.isdigit():
        number = int(text)
    elif realtime is not None:
        base = signals.SIGRTMIN if realtime[1] == "IN" else signals.SIGRTMAX
        number = int(base) + int(realtime[2] or 0)
    else:
        known = signals.Signals.__members__.get(text if text.startswith("SIG") else f"SIG{text}")
        number = int(known) if known is not None else 0
    if not 1 <= number <= int(signals.SIGRTMAX):
        raise EngineRefused(f"{name!r} is not a signal's name or number", reason=Reason.INVALID_SPEC, user_error=True)
    return number


class Tasks:
    """Called for the task methods of the port."""

    def __init__(
        self,
        services: Services,
        settings: ContainerdSettings,
        containers: Containers,
        workspaces: Workspaces,
        observer: Observer,
        oomed: OomMemory,
    ) -> None:
        self._services = services
        self._settings = settings
        self._containers = containers
        self._workspaces = workspaces
        self._observer = observer
        self._oomed = oomed

    async def start(self, container: ContainerId, key: SnapshotKey, before_start: BeforeStart) -> TaskFacts:
        """See the port. An ended task that is still there is returned as it is: how it ended must be read first."""
        record, task, snapshot = await asyncio.gather(
            self._containers.find(container), self._containers.task_of(container), self._workspaces.own(key)
        )
        if record is None or record.snapshot_key != key:
            raise EngineRefused(
                f"cannot start {container}: there is no container of that id on snapshot {key}",
                reason=Reason.START_FAILED,
            )
        if task is not None and task.status is not ProcessStatus.CREATED:
            return await self._facts(container, task)
        if snapshot is None:
            raise EngineRefused(
                f"cannot start {container}: snapshot {key} is not there; its data may be missing",
                reason=Reason.DATA_MISSING,
                blocks_data=True,
            )
        gate = snapshot.labels.get(names.ENGINE_LABEL_GATE)
        if gate is not None:
            raise EngineRefused(
                f"cannot start {container}: archive {gate} has not been restored into {key} yet",
                reason=Reason.RESTORE_PENDING,
            )
        if task is not None:
            _log.info("unstarted_task_cleared", container=container)
            await self._clear(container)
        return await self._start(record, snapshot_facts(snapshot).n, before_start)

    async def _start(self, record: ContainerRecord, n: int, before_start: BeforeStart) -> TaskFacts:
        container, key = ContainerId(record.id), SnapshotKey(record.snapshot_key)
        mounts, layers = await self._workspaces.disk(key)
        await self._workspaces.refuse_if_in_use(key, layers, "start a task on")
        try:
            output = await asyncio.to_thread(self._log_file, record, n)
        except OSError as error:
            raise EngineRefused(
                f"cannot make the log folder of {container}: {error}; look at the state folder",
                reason=Reason.START_FAILED,
            ) from error
        self._oomed.forget(container)
        create = self._services.tasks.create(container, mounts, f"file://{output}", self._settings.runc_root)
        created, prepared = await asyncio.gather(create, before_start(), return_exceptions=True)
        try:
            for outcome in (created, prepared):
                if isinstance(outcome, BaseException):
                    raise outcome
            pid = await self._services.tasks.start(container)
        except AlreadyExists as error:
            raise start_refusal(error, _command(record)) from error
        except RpcFailed as error:
            await self._clear(container)
            raise start_refusal(error, _command(record)) from error
        except EngineUnavailable:
            raise
        except PortError:
            # Its network did not come: the program has not run, and does not.
            await self._clear(container)
            raise
        return TaskFacts(state=TaskState.RUNNING, pid=pid)

    async def _facts(self, container: ContainerId, task: Process) -> TaskFacts:
        found = await self._observer.task_facts(container, task)
        if isinstance(found, Present):
            return found.it
        raise EngineUnavailable(f"containerd does not know the state of task {container}; check its shim")

    def _log_file(self, record: ContainerRecord, n: int) -> Path:
        folder = self._log_folder(reference(record.labels))
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        return folder / f"{n}.log"

    def _log_folder(self, ref: RuntimeRef) -> Path:
        return self._settings.state_dir / "logs" / f"{ref.namespace}_{ref.name}_{ref.uid}"

    async def remove_logs(self, ref: RuntimeRef) -> None:
        """See `forget` of the port."""
        try:
            await asyncio.to_thread(shutil.rmtree, self._log_folder(ref))
        except FileNotFoundError:
            return
        except OSError as error:
            raise EngineRefused(
                f"cannot remove the logs of {ref}: {error}; look at the state folder", reason=Reason.INTERNAL_ERROR
            ) from error

    async def _clear(self, container: ContainerId) -> None:
        """Take away a task whose program never ran: there is nothing of a container's in it. A running one is left."""
        task = await self._containers.task_of(container)
        if task is None or task.status not in (ProcessStatus.CREATED, ProcessStatus.STOPPED):
            return
        if task.status is ProcessStatus.CREATED:
            await self.signal(container, "SIGKILL")
            await self.wait(container, KILL_SECONDS)
        await self._delete(container)

    async def signal(self, container: ContainerId, signal: str) -> None:
        number = signal_number(signal)
        try:
            await self._services.tasks.kill(container, number, everything=number == signals.SIGKILL)
        except NotFound as error:
            # No record, no task, or `process already finished`: there is nobody left to hear it.
            _log.debug("signal_unheard", container=container, signal=signal, why=error.text)

    async def wait(self, container: ContainerId, deadline: float) -> bool:
        try:
            await self._services.tasks.wait(container, deadline)
        except RpcTimeout:
            return False
        except NotFound as error:
            if not (error.is_about("task", container) or error.is_about("container", container)):
                raise
        return True

    async def delete(self, container: ContainerId) -> None:
        task = await self._containers.task_of(container)
        if task is None:
            self._oomed.forget(container)
            return
        if task.status is ProcessStatus.CREATED:
            await self._clear(container)
            return
        if task.status is not ProcessStatus.STOPPED:
            raise EngineRefused(
                f"cannot delete the task of {container}: it is {task.status.name.lower()}; stop it first",
                reason=Reason.STOP_TIMED_OUT,
            )
        await self._delete(container)

    async def _delete(self, container: ContainerId) -> None:
        try:
            await self._services.tasks.delete(container)
        except NotFound as error:
            if not (error.is_about("task", container) or error.is_about("container", container)):
                raise
        self._oomed.forget(container)


def _command(record: ContainerRecord) -> str:
    try:
        return msgspec.json.decode(record.spec, type=_Command).process.args[0]
    except (msgspec.MsgspecError, IndexError):
        return record.id
