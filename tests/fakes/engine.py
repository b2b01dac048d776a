"""A container engine in memory, for the crash matrix. It passes `tests/contract/test_engine_contract.py`, as containerd does.

What it did is in a `FakeMachine`, which outlives the engine object as a machine outlives an agent. Files are entries of a
dict: a running main process writes a new one at every tick, so that lost data is noticed.
"""

from __future__ import annotations

import asyncio
import signal as signals
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.fakes.journal import Hook

from perdure.api.conditions import Reason
from perdure.api.names import ChainId, ContainerId, InstallationId, RuntimeRef, SnapshotKey, Uid
from perdure.api.runtime import PullPolicy
from perdure.engine.image_names import InvalidImageName, normalise
from perdure.plan.certainty import Absent, Certain, Present, Unknown
from perdure.plan.world import ContainerFacts, Exit, ImageFacts, SnapshotFacts, TaskFacts, TaskState, Workspace
from perdure.reconcile.ports.engine import (
    BeforeStart,
    ContainerPlan,
    EngineEvent,
    EngineInfo,
    EngineView,
    Execution,
    Layer,
    Owned,
    nothing_more,
)
from perdure.reconcile.ports.errors import EngineRefused

USERS = frozenset({"", "0", "root", "app", "1000"})
"""Who is in the images' user database."""
ROOT_USERS = frozenset({"", "0", "root"})


@dataclass(slots=True)
class FakeSnapshot:
    installation: InstallationId
    ref: RuntimeRef
    facts: SnapshotFacts
    files: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class FakeContainer:
    installation: InstallationId
    plan: ContainerPlan


@dataclass(slots=True)
class FakeTask:
    facts: TaskFacts
    key: SnapshotKey
    deaf: bool


@dataclass(frozen=True, slots=True)
class Start:
    """A main process that was started, and what it found on its disk."""

    ref: RuntimeRef
    key: SnapshotKey
    files: frozenset[str]


@dataclass(slots=True)
class FakeMachine:
    """What survives the agent: images, snapshots, containers, tasks; and a diary of what the processes did."""

    images: dict[str, ImageFacts] = field(default_factory=dict)
    snapshots: dict[SnapshotKey, FakeSnapshot] = field(default_factory=dict)
    containers: dict[ContainerId, FakeContainer] = field(default_factory=dict)
    tasks: dict[ContainerId, FakeTask] = field(default_factory=dict)
    starts: list[Start] = field(default_factory=list)
    written: dict[Uid, dict[str, str]] = field(default_factory=dict)
    """Every file that a main process ever wrote, by the life that wrote it."""
    removed: list[SnapshotKey] = field(default_factory=list)
    unasked: list[Uid] = field(default_factory=list)
    """Whose main process ended by itself, once for each end."""
    unwell: str | None = None
    """What every command in a container says before it fails, while they all fail; a new main process is well."""
    away: str | None = None
    """Why the engine cannot be observed, while it cannot."""
    on_remove: Callable[[FakeSnapshot], None] | None = None
    """Called before a snapshot goes: the place where a test asks for the grounds."""
    on_start: Callable[[FakeSnapshot], None] | None = None
    """Called before a main process starts: the place where a test looks at what it will find."""
    disk: Path | None = None
    """Where layers are real folders, for those who look at them."""
    now: Callable[[], float] = time.time
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _events: list[asyncio.Queue[EngineEvent]] = field(default_factory=list)
    _count: int = 0

    def tick(self) -> None:
        """Every running main process writes a file."""
        for task in self.tasks.values():
            if task.facts.state is TaskState.RUNNING:
                self._write(self.snapshots[task.key])

    def crash(self, container: ContainerId, code: int = 1, *, oom: bool = False) -> None:
        """The main process ends by itself, after its last write."""
        self.end(container, code, oom=oom)

    def lose_tasks(self) -> None:
        """The machine was rebooted: no process is left, and no exit code."""
        self.tasks.clear()

    def end(self, container: ContainerId, code: int, *, oom: bool = False, asked: bool = False) -> None:
        task = self.tasks.get(container)
        if task is None or task.facts.state is TaskState.STOPPED:
            return
        if code != 137:
            self._write(self.snapshots[task.key])
        task.facts = TaskFacts(TaskState.STOPPED, task.facts.pid, Exit(code, self.now(), oom), int(oom))
        if not asked:
            self.unasked.append(self.containers[container].plan.ref.uid)
        self.tell(self.containers[container].plan.ref.uid, "/tasks/exit")

    def begin(self, container: FakeContainer) -> TaskFacts:
        """The main process runs from now on; one that only exits has ended by the next look."""
        plan, text = container.plan, " ".join(container.plan.spec.command)
        snapshot = self.snapshots[plan.key]
        self._count += 1
        started = TaskFacts(TaskState.RUNNING, 1000 + self._count)
        if self.on_start is not None:
            self.on_start(snapshot)
        self.unwell = None
        self.starts.append(Start(plan.ref, plan.key, frozenset(snapshot.files)))
        self.tasks[plan.id] = FakeTask(started, plan.key, deaf="trap '' TERM" in text)
        self._write(snapshot)
        self.tell(plan.ref.uid, "/tasks/start")
        if plan.spec.command[-1:] and plan.spec.command[-1].startswith("exit "):
            self.end(plan.id, int(plan.spec.command[-1].removeprefix("exit ")))
        return started

    def tell(self, uid: Uid, topic: str) -> None:
        self.changed.set()
        self.changed = asyncio.Event()
        for queue in self._events:
            queue.put_nowait(EngineEvent(uid, topic))

    def hang_up(self) -> None:
        """Whoever listened is gone."""
        self._events.clear()

    def subscribe(self) -> asyncio.Queue[EngineEvent]:
        queue: asyncio.Queue[EngineEvent] = asyncio.Queue()
        self._events.append(queue)
        return queue

    def _write(self, snapshot: FakeSnapshot) -> None:
        self._count += 1
        name = f"{snapshot.facts.key}/{self._count}"
        snapshot.files[name] = f"written {self._count}"
        self.written.setdefault(snapshot.ref.uid, {})[name] = snapshot.files[name]


class FakeEngine:
    """One installation's view of a machine."""

    def __init__(self, machine: FakeMachine, installation: InstallationId, on_call: Hook | None = None) -> None:
        self._machine = machine
        self._installation = installation
        self._on_call = on_call

    async def info(self) -> EngineInfo:
        return EngineInfo("fake", "1")

    # ------------------------------------------------------------------------------------------ looking

    async def observe(self, ref: RuntimeRef, key: SnapshotKey | None) -> EngineView:
        machine = self._machine
        if machine.away is not None:
            unknown = Unknown(machine.away)
            return EngineView(unknown, unknown, unknown)
        container = machine.containers.get(ref.container_id)
        if container is not None and container.installation != self._installation:
            container = None
        task = machine.tasks.get(ref.container_id) if container is not None else None
        return EngineView(
            container=Present(_container_facts(container)) if container is not None else Absent(),
            task=Present(task.facts) if task is not None else Absent(),
            snapshots=Present(tuple(found for found in self._snapshots_of(ref.uid) if key is None or found.key == key)),
        )

    async def inventory(self) -> Certain[tuple[Owned, ...]]:
        machine = self._machine
        if machine.away is not None:
            return Unknown(machine.away)
        snapshots = [snapshot for snapshot in machine.snapshots.values() if snapshot.installation == self._installation]
        containers = [found for found in machine.containers.values() if found.installation == self._installation]
        refs = {snapshot.ref: None for snapshot in snapshots} | {found.plan.ref: None for found in containers}
        owned = []
        for ref in refs:
            container, task = machine.containers.get(ref.container_id), machine.tasks.get(ref.container_id)
            owned.append(
                Owned(
                    ref=ref,
                    snapshots=self._snapshots_of(ref.uid),
                    container=_container_facts(container) if container is not None else None,
                    task=task.facts if task is not None else None,
                )
            )
        return Present(tuple(owned))

    async def strangers(self) -> Certain[tuple[str, ...]]:
        machine = self._machine
        if machine.away is not None:
            return Unknown(machine.away)
        found = [f"container {id_}" for id_, it in machine.containers.items() if it.installation != self._installation]
        found += [f"snapshot {key}" for key, it in machine.snapshots.items() if it.installation != self._installation]
        return Present(tuple(sorted(found)))

    async def image(self, name: str) -> Certain[ImageFacts]:
        if self._machine.away is not None:
            return Unknown(self._machine.away)
        found = self._machine.images.get(name)
        return Present(found) if found is not None else Absent()

    def _snapshots_of(self, uid: Uid) -> tuple[SnapshotFacts, ...]:
        ours = (
            snapshot.facts
            for snapshot in self._machine.snapshots.values()
            if snapshot.ref.uid == uid and snapshot.installation == self._installation
        )
        return tuple(sorted(ours, key=lambda facts: facts.n))

    # ------------------------------------------------------------------------------------------ images and layers

    async def ensure_image(self, name: str, policy: PullPolicy) -> ImageFacts:
        self._call("ensure_image", "before")
        try:
            normalise(name)
        except InvalidImageName as error:
            raise EngineRefused(str(error), reason=Reason.INVALID_SPEC, user_error=True) from error
        found = self._machine.images.get(name)
        if found is None:
            reason = Reason.IMAGE_NOT_FOUND if policy is PullPolicy.NEVER else Reason.PULL_UNSUPPORTED
            raise EngineRefused(f"image {name} is not on this node: import it", reason=reason, user_error=True)
        self._call("ensure_image", "after")
        return found

    async def prepare_workspace(self, ref: RuntimeRef, workspace: Workspace) -> None:
        self._call("prepare_workspace", "before")
        there = self._own_snapshot(workspace.key)
        if there is not None and there.facts.chain_id != workspace.chain_id:
            raise _conflict(f"snapshot {workspace.key} stands on other layers")
        if there is None:
            gate = workspace.gate.sequence if workspace.gate is not None else None
            facts = SnapshotFacts(
                workspace.key, workspace.n, workspace.chain_id, workspace.image, workspace.image_digest, gate
            )
            self._machine.snapshots[workspace.key] = FakeSnapshot(self._installation, ref, facts)
        self._call("prepare_workspace", "after")

    async def open_gate(self, key: SnapshotKey) -> None:
        self._call("open_gate", "before")
        snapshot = self._own_snapshot(key)
        if snapshot is not None:
            snapshot.facts = replace(snapshot.facts, gate=None)
        self._call("open_gate", "after")

    async def usage(self, key: SnapshotKey) -> int:
        self._call("usage", "before")
        snapshot = self._own_snapshot(key)
        if snapshot is None:
            raise EngineRefused(f"snapshot {key} is not there", reason=Reason.DATA_MISSING)
        disk = self._machine.disk
        real = sum(path.stat().st_size for path in (disk / "layers" / key).rglob("*")) if disk is not None else 0
        return 4096 * len(snapshot.files) + real

    async def layer(self, key: SnapshotKey) -> Layer:
        self._call("layer", "before")
        if self._own_snapshot(key) is None:
            raise EngineRefused(f"the layer of snapshot {key} is not there", reason=Reason.DATA_MISSING)
        if any(task.key == key for task in self._machine.tasks.values()):
            raise _conflict(f"a task is on snapshot {key}: its layer cannot be read")
        disk = self._machine.disk
        if disk is None:
            return Layer(key, Path("/no-disk/layers") / key, Path("/no-disk/staging"))
        upper, staging = disk / "layers" / key, disk / "staging"
        upper.mkdir(parents=True, exist_ok=True)
        staging.mkdir(mode=0o700, exist_ok=True)
        return Layer(key, upper, staging)

    async def remove_workspace(self, key: SnapshotKey) -> None:
        self._call("remove_workspace", "before")
        snapshot = self._own_snapshot(key)
        if snapshot is not None:
            if any(container.plan.key == key for container in self._machine.containers.values()):
                raise _conflict(f"a container refers to snapshot {key}")
            if self._machine.on_remove is not None:
                self._machine.on_remove(snapshot)
            del self._machine.snapshots[key]
            self._machine.removed.append(key)
        self._call("remove_workspace", "after")

    async def forget(self, ref: RuntimeRef) -> None:
        self._call("forget", "before")
        self._call("forget", "after")

    # ------------------------------------------------------------------------------------------ container and task

    async def create_container(self, plan: ContainerPlan) -> None:
        self._call("create_container", "before")
        there = self._own_container(plan.id)
        argv = plan.spec.command or plan.image.entrypoint or plan.image.cmd
        if not argv or not argv[0]:
            raise EngineRefused(f"{plan.ref} has no command", reason=Reason.INVALID_SPEC, user_error=True)
        user = plan.spec.user or plan.image.user
        if user not in USERS:
            raise EngineRefused(f"user {user} is not in the image", reason=Reason.USER_NOT_FOUND, user_error=True)
        if plan.restricted and user in ROOT_USERS:
            raise EngineRefused("uid 0 is refused by this namespace", reason=Reason.POD_SECURITY, user_error=True)
        if there is None or plan.id not in self._machine.tasks:
            self._machine.containers[plan.id] = FakeContainer(self._installation, plan)
        elif there.plan.spec_hash != plan.spec_hash:
            raise EngineRefused(f"container {plan.id} has a task and is left as it is", reason=Reason.START_FAILED)
        self._call("create_container", "after")

    async def start_task(
        self, container: ContainerId, key: SnapshotKey, before_start: BeforeStart = nothing_more
    ) -> TaskFacts:
        self._call("start_task", "before")
        made, snapshot = self._own_container(container), self._own_snapshot(key)
        if made is None or made.plan.key != key or snapshot is None:
            raise EngineRefused(f"container {container} on snapshot {key} is not there", reason=Reason.START_FAILED)
        if snapshot.facts.gate is not None:
            raise EngineRefused(f"the gate of snapshot {key} is shut", reason=Reason.RESTORE_PENDING)
        task = self._machine.tasks.get(container)
        if task is not None and task.facts.state is not TaskState.CREATED:
            return task.facts
        if any(other.key == key for id_, other in self._machine.tasks.items() if id_ != container):
            raise _conflict(f"another task is on snapshot {key}")
        if made.plan.spec.command[:1] == ("/bin/missing",):
            raise EngineRefused("/bin/missing is not in the image", reason=Reason.COMMAND_NOT_FOUND, user_error=True)
        await before_start()
        facts = self._machine.begin(made)
        self._call("start_task", "after")
        return facts

    async def signal_task(self, container: ContainerId, signal: str) -> None:
        self._call("signal_task", "before")
        if signal not in signals.Signals.__members__:
            raise EngineRefused(f"{signal} is no signal", reason=Reason.INVALID_SPEC, user_error=True)
        task = self._machine.tasks.get(container)
        if task is not None and signal == "SIGKILL":
            self._machine.end(container, 137, asked=True)
        elif task is not None and not task.deaf:
            self._machine.end(container, 0, asked=True)
        self._call("signal_task", "after")

    async def wait_task(self, container: ContainerId, deadline: float) -> bool:
        self._call("wait_task", "before")
        try:
            async with asyncio.timeout(deadline):
                while True:
                    task = self._machine.tasks.get(container)
                    if task is None or task.facts.state is TaskState.STOPPED:
                        return True
                    await self._machine.changed.wait()
        except TimeoutError:
            return False

    async def delete_task(self, container: ContainerId) -> None:
        self._call("delete_task", "before")
        task = self._machine.tasks.get(container)
        if task is not None and task.facts.state is not TaskState.STOPPED:
            raise EngineRefused(f"the task of {container} has not ended", reason=Reason.STOP_TIMED_OUT)
        self._machine.tasks.pop(container, None)
        self._call("delete_task", "after")

    async def execute(
        self, container: ContainerId, command: Sequence[str], seconds: float, secrets: Set[str] = frozenset()
    ) -> Execution:
        """Understands `/bin/sh -c` with `exit N`, `echo TEXT; exit N`, `echo $NAME; exit N` and `sleep`."""
        self._call("execute", "before")
        task, made = self._machine.tasks.get(container), self._own_container(container)
        if task is None or made is None or task.facts.state is not TaskState.RUNNING:
            raise EngineRefused(f"no main process runs in {container}", reason=Reason.INTERNAL_ERROR)
        if command[0] != "/bin/sh":
            return Execution(127, f"{command[0]} is not in the image")
        if self._machine.unwell is not None:
            return Execution(1, self._machine.unwell)
        line = command[-1]
        if line.startswith("sleep"):
            return Execution(None)
        said, _, rest = line.rpartition("; ") if "; " in line else ("", "", line)
        text = said.removeprefix("echo ")
        values = dict(made.plan.env.values)
        if text.startswith("$"):
            text = "***" if text[1:] in secrets else values.get(text[1:], "")
        self._call("execute", "after")
        return Execution(int(rest.removeprefix("exit ")), text)

    async def remove_container(self, container: ContainerId) -> None:
        self._call("remove_container", "before")
        if self._own_container(container) is not None and container in self._machine.tasks:
            raise EngineRefused(f"container {container} has a task", reason=Reason.STOP_TIMED_OUT)
        self._machine.containers.pop(container, None)
        self._call("remove_container", "after")

    async def events(self) -> AsyncIterator[EngineEvent]:
        queue = self._machine.subscribe()
        while True:
            yield await queue.get()

    # ------------------------------------------------------------------------------------------ whose it is

    def _own_snapshot(self, key: SnapshotKey) -> FakeSnapshot | None:
        found = self._machine.snapshots.get(key)
        if found is not None and found.installation != self._installation:
            raise _conflict(f"snapshot {key} belongs to another installation")
        return found

    def _own_container(self, container: ContainerId) -> FakeContainer | None:
        found = self._machine.containers.get(container)
        if found is not None and found.installation != self._installation:
            raise _conflict(f"container {container} belongs to another installation")
        return found

    def _call(self, name: str, when: str) -> None:
        if self._on_call is not None:
            self._on_call(f"engine.{name}", "before" if when == "before" else "after")


def sample_images(names: Mapping[str, str]) -> dict[str, ImageFacts]:
    """Images by name, each standing on the layers that its value names."""
    return {
        name: ImageFacts(name, f"sha256:digest-of-{name}", ChainId(f"sha256:{layers}"), cmd=("/bin/sh", "-c", "run"))
        for name, layers in names.items()
    }


def _container_facts(container: FakeContainer) -> ContainerFacts:
    return ContainerFacts(container.plan.id, container.plan.key, container.plan.spec_hash)


def _conflict(message: str) -> EngineRefused:
    return EngineRefused(message, reason=Reason.SNAPSHOT_CONFLICT)
