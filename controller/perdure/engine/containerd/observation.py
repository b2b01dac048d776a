"""One look at one runtime, or at everything of ours: errors become `Unknown` here and nowhere else is an answer bent.

Called by the engine for `observe` and `inventory` of the port; never raises what the engine said.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path

from perdure.api import names
from perdure.api.names import ContainerId, RuntimeRef, SnapshotKey, Uid
from perdure.engine.containerd import oom
from perdure.engine.containerd.errors import NotFound
from perdure.engine.containerd.labels import (
    UNPACK_PREFIX,
    UnreadableLabels,
    belongs_to,
    container_facts,
    reference,
    snapshot_facts,
    uid_of,
)
from perdure.engine.containerd.messages import ContainerRecord, Process, ProcessStatus, SnapshotInfo, SnapshotKind
from perdure.engine.containerd.services import Services, label_filter, other_label_filter
from perdure.engine.containerd.settings import ContainerdSettings
from perdure.plan.certainty import Absent, Certain, Present, Unknown
from perdure.plan.world import ContainerFacts, Exit, SnapshotFacts, TaskFacts, TaskState
from perdure.reconcile.ports.engine import EngineView, Owned
from perdure.reconcile.ports.errors import PortError

_STATES = {
    ProcessStatus.CREATED: TaskState.CREATED,
    ProcessStatus.RUNNING: TaskState.RUNNING,
    ProcessStatus.PAUSED: TaskState.RUNNING,
    ProcessStatus.PAUSING: TaskState.RUNNING,
    ProcessStatus.STOPPED: TaskState.STOPPED,
}


class OomMemory:
    """Containers of which a TaskOOM event came; forgotten when their task is deleted or started anew."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def remember(self, container: str) -> None:
        self._seen.add(container)

    def forget(self, container: str) -> None:
        self._seen.discard(container)

    def __contains__(self, container: str) -> bool:
        return container in self._seen


class Observer:
    """Reads; changes nothing."""

    def __init__(self, services: Services, settings: ContainerdSettings, oomed: OomMemory, *, cgroup2: bool) -> None:
        self._services = services
        self._settings = settings
        self._oomed = oomed
        self._cgroup2 = cgroup2

    async def observe(self, ref: RuntimeRef, key: SnapshotKey | None) -> EngineView:
        record, task, snapshots = await asyncio.gather(
            self.record(ref.container_id),
            self.task(ref.container_id),
            self._snapshot(ref, key) if key is not None else self._snapshots(ref),
        )
        match record:
            case Present(it):
                if not belongs_to(it.labels, self._settings.installation):
                    # The id is taken by somebody else's: neither it nor its task is ours.
                    return EngineView(container=Absent(), task=Absent(), snapshots=snapshots)
                return EngineView(container=Present(container_facts(it)), task=task, snapshots=snapshots)
            case Absent():
                unclaimed = await self._task_without_record(ref.container_id)
                return EngineView(container=Absent(), task=unclaimed, snapshots=snapshots)
            case Unknown():
                return EngineView(container=record, task=task, snapshots=snapshots)

    async def record(self, container: ContainerId) -> Certain[ContainerRecord]:
        """The record of that id, whoever's it is."""
        try:
            return Present(await self._services.containers.get(container))
        except NotFound as error:
            return Absent() if error.is_about("container", container) else Unknown(str(error))
        except PortError as error:
            return Unknown(str(error))

    async def task(self, container: ContainerId) -> Certain[TaskFacts]:
        """The task of a container. A record without a task: `Absent` (2.x forgets a task that ended while it was down).

        Without a record containerd answers about the container, which says nothing about a task.
        """
        try:
            process = await self._services.tasks.get(container)
        except NotFound as error:
            return Absent() if error.is_about("task", container) else Unknown(str(error))
        except PortError as error:
            return Unknown(str(error))
        return await self.task_facts(container, process)

    async def task_facts(self, container: str, process: Process) -> Certain[TaskFacts]:
        state = _STATES.get(process.status)
        if state is None:
            return Unknown(f"containerd does not know the state of task {container}; its shim does not answer")
        if state is not TaskState.STOPPED:
            # A file is read only where the engine said that there is something to read.
            ooms = await self._ooms(container) if container in self._oomed else 0
            return Present(TaskFacts(state=state, pid=process.pid, ooms=ooms))
        at = process.exited_at if process.exited_at is not None else time.time()
        ooms = await self._ooms(container) if process.exit_status != 0 else 0
        ended = Exit(process.exit_status, at, oom=ooms > 0)
        return Present(TaskFacts(state=state, pid=process.pid, exit=ended, ooms=ooms))

    async def _ooms(self, container: str) -> int:
        """How many were killed, by the cgroup while it is there; at least the one that the engine told of."""
        cgroup = f"{self._settings.cgroup_parent.rstrip('/')}/{container}"
        counted = await asyncio.to_thread(oom.kills, cgroup, cgroup2=self._cgroup2)
        return max(counted or 0, int(container in self._oomed))

    async def _task_without_record(self, container: ContainerId) -> Certain[TaskFacts]:
        """A task can outlive its record; only the list shows it then.

        The list asks every shim, so it is read only where runc's own state says that there is such a container.
        """
        root = Path(self._settings.runc_root or "/run/containerd/runc") / self._settings.namespace / container
        if not await asyncio.to_thread(root.exists):
            return Absent()
        try:
            processes = await self._services.tasks.list()
        except PortError as error:
            return Unknown(str(error))
        found = next((process for process in processes if process.id == container), None)
        return Absent() if found is None else await self.task_facts(container, found)

    async def _snapshot(self, ref: RuntimeRef, key: SnapshotKey) -> Certain[tuple[SnapshotFacts, ...]]:
        try:
            info = await self._services.snapshots.stat(key)
        except NotFound as error:
            return Present(()) if error.is_about("snapshot", key) else Unknown(str(error))
        except PortError as error:
            return Unknown(str(error))
        return self._own_snapshots(ref, (info,))

    async def _snapshots(self, ref: RuntimeRef) -> Certain[tuple[SnapshotFacts, ...]]:
        try:
            found = await self._services.snapshots.list(label_filter(names.ENGINE_LABEL_UID, ref.uid))
        except PortError as error:
            return Unknown(str(error))
        return self._own_snapshots(ref, found)

    def _own_snapshots(self, ref: RuntimeRef, found: Iterable[SnapshotInfo]) -> Certain[tuple[SnapshotFacts, ...]]:
        facts = []
        for info in found:
            labels = info.labels
            if not belongs_to(labels, self._settings.installation) or labels.get(names.ENGINE_LABEL_UID) != ref.uid:
                continue
            if info.kind is not SnapshotKind.ACTIVE:
                return Unknown(f"snapshot {info.key} is {info.kind.name.lower()}; somebody committed it by hand")
            try:
                facts.append(snapshot_facts(info))
            except UnreadableLabels as error:
                return Unknown(str(error))
        return Present(tuple(sorted(facts, key=lambda fact: fact.n)))

    async def inventory(self) -> Certain[tuple[Owned, ...]]:
        ours = label_filter(names.ENGINE_LABEL_INSTALLATION, self._settings.installation)
        try:
            records, snapshots, processes = await asyncio.gather(
                self._services.containers.list(ours), self._services.snapshots.list(ours), self._services.tasks.list()
            )
            return await self._owned(records, snapshots, processes)
        except PortError as error:
            return Unknown(str(error))

    async def strangers(self) -> Certain[tuple[str, ...]]:
        others = other_label_filter(names.ENGINE_LABEL_INSTALLATION, self._settings.installation)
        try:
            records, snapshots = await asyncio.gather(
                self._services.containers.list(others), self._services.snapshots.list(others)
            )
        except PortError as error:
            return Unknown(str(error))
        written = (info.key for info in snapshots if info.kind is SnapshotKind.ACTIVE)
        found = [f"container {record.id}" for record in records]
        found += [f"snapshot {key}" for key in written if not key.startswith(UNPACK_PREFIX)]
        return Present(tuple(sorted(found)))

    async def _owned(
        self, records: Iterable[ContainerRecord], snapshots: Iterable[SnapshotInfo], processes: Iterable[Process]
    ) -> Certain[tuple[Owned, ...]]:
        refs: dict[Uid, RuntimeRef] = {}
        held: dict[Uid, list[SnapshotFacts]] = {}
        containers: dict[Uid, ContainerFacts] = {}
        tasks: dict[Uid, TaskFacts] = {}
        for info in snapshots:
            ref = reference(info.labels)
            refs[ref.uid] = ref
            held.setdefault(ref.uid, []).append(snapshot_facts(info))
        for record in records:
            ref = reference(record.labels)
            refs[ref.uid] = ref
            containers[ref.uid] = container_facts(record)
        for process in processes:
            uid = uid_of(process.id)
            if uid is None or uid not in refs or refs[uid].container_id != process.id:
                continue
            match await self.task_facts(process.id, process):
                case Present(it):
                    tasks[uid] = it
                case Unknown() as unknown:
                    return unknown
                case Absent():
                    continue
        return Present(
            tuple(
                Owned(
                    ref=ref,
                    snapshots=tuple(sorted(held.get(uid, ()), key=lambda fact: fact.n)),
                    container=containers.get(uid),
                    task=tasks.get(uid),
                )
                for uid, ref in refs.items()
            )
        )
