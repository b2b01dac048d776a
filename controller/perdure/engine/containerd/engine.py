"""The containerd engine: the port's methods, each handed to the part that knows how.

Made by the composition roots, driven by the loop. Every method may be repeated, and has its deadline in the calls that
it makes (`rpc`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence, Set

import structlog

from perdure.api.names import ContainerId, RuntimeRef, SnapshotKey
from perdure.api.runtime import PullPolicy
from perdure.engine.containerd.containers import Containers
from perdure.engine.containerd.execs import Execs
from perdure.engine.containerd.images import Images
from perdure.engine.containerd.labels import uid_of
from perdure.engine.containerd.observation import Observer, OomMemory
from perdure.engine.containerd.rpc import Connection
from perdure.engine.containerd.services import Services
from perdure.engine.containerd.settings import ContainerdSettings
from perdure.engine.containerd.tasks import Tasks
from perdure.engine.containerd.workspaces import Workspaces
from perdure.engine.mounted_files import MountedFileStore
from perdure.engine.oci.node import detect
from perdure.plan.certainty import Certain
from perdure.plan.world import ImageFacts, TaskFacts, Workspace
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
from perdure.reconcile.ports.errors import EngineRefused, EngineUnavailable

_log = structlog.get_logger(__name__)

OOM_TOPIC = "/tasks/oom"


class ContainerdEngine:
    """`perdure.reconcile.ports.engine.Engine` on one containerd. Must be made in the event loop that uses it."""

    def __init__(self, settings: ContainerdSettings) -> None:
        node = detect()
        self._settings = settings
        self._connection = Connection(settings.address, settings.namespace)
        self._services = Services(self._connection, settings.snapshotter)
        self._oomed = OomMemory()
        self._observer = Observer(self._services, settings, self._oomed, cgroup2=node.cgroup2)
        self._images = Images(self._services, settings.namespace)
        self._workspaces = Workspaces(self._services, settings.installation, settings.address)
        files = MountedFileStore(settings.state_dir, node.resolv_conf)
        self._containers = Containers(self._services, settings, self._workspaces, files, node)
        self._tasks = Tasks(self._services, settings, self._containers, self._workspaces, self._observer, self._oomed)
        self._execs = Execs(self._services, settings, self._containers, cgroup2=node.cgroup2)

    async def close(self) -> None:
        """End the connection; containers go on running."""
        await self._execs.close()
        await self._connection.close()

    async def info(self) -> EngineInfo:
        return EngineInfo("containerd", await self._services.version())

    async def observe(self, ref: RuntimeRef, key: SnapshotKey | None) -> EngineView:
        return await self._observer.observe(ref, key)

    async def inventory(self) -> Certain[tuple[Owned, ...]]:
        return await self._observer.inventory()

    async def strangers(self) -> Certain[tuple[str, ...]]:
        return await self._observer.strangers()

    async def image(self, name: str) -> Certain[ImageFacts]:
        return await self._images.find(name)

    async def ensure_image(self, name: str, policy: PullPolicy) -> ImageFacts:
        return await self._images.ensure(name, policy)

    async def prepare_workspace(self, ref: RuntimeRef, workspace: Workspace) -> None:
        await self._workspaces.prepare(ref, workspace)

    async def open_gate(self, key: SnapshotKey) -> None:
        await self._workspaces.open_gate(key)

    async def usage(self, key: SnapshotKey) -> int:
        return await self._workspaces.usage(key)

    async def layer(self, key: SnapshotKey) -> Layer:
        return await self._workspaces.layer(key)

    async def create_container(self, plan: ContainerPlan) -> None:
        await self._containers.create(plan)

    async def start_task(
        self, container: ContainerId, key: SnapshotKey, before_start: BeforeStart = nothing_more
    ) -> TaskFacts:
        return await self._tasks.start(container, key, before_start)

    async def signal_task(self, container: ContainerId, signal: str) -> None:
        await self._tasks.signal(container, signal)

    async def wait_task(self, container: ContainerId, deadline: float) -> bool:
        return await self._tasks.wait(container, deadline)

    async def delete_task(self, container: ContainerId) -> None:
        await self._tasks.delete(container)

    async def execute(
        self, container: ContainerId, command: Sequence[str], seconds: float, secrets: Set[str] = frozenset()
    ) -> Execution:
        return await self._execs.run(container, command, seconds, secrets)

    async def remove_container(self, container: ContainerId) -> None:
        await self._containers.remove(container)

    async def remove_workspace(self, key: SnapshotKey) -> None:
        await self._workspaces.remove(key)

    async def forget(self, ref: RuntimeRef) -> None:
        await self._tasks.remove_logs(ref)

    async def events(self) -> AsyncIterator[EngineEvent]:
        """See the port. containerd confirms no subscription and replays nothing: list after subscribing."""
        stream = self._services.subscribe(f'topic~="^/tasks/",namespace=={self._settings.namespace}')
        try:
            async for event in stream:
                uid = uid_of(event.container_id)
                if uid is None:
                    continue
                if event.topic == OOM_TOPIC:
                    self._oomed.remember(event.container_id)
                yield EngineEvent(uid, event.topic)
        except (EngineUnavailable, EngineRefused) as error:
            _log.warning("engine_events_broke", engine="containerd", why=str(error))
